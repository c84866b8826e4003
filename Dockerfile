# fedcl in a container.
#
#     docker build -t fedcl .                                                                # CPU
#     docker build -t fedcl:cuda --build-arg TORCH=https://pypi.org/simple .                # NVIDIA GPUs
#     docker build -t fedcl --build-arg EXTRAS=privacy,pandas .                              # with extras of pyproject.toml
#     alias fedcl='docker run --rm --user "$(id -u):$(id -g)" -e HOME=/tmp -e FEDCL_DATA=/srv/data -v "$PWD":/srv fedcl'
#     fedcl simulate --clients 5
#     docker run --rm --gpus all … fedcl:cuda simulate --runtime processes --devices auto
#
# PyPI's wheels of torch for Linux carry CUDA's libraries, so one base serves both; the host brings the driver.
# CI does not build this file.
FROM python:3.12-slim

ARG TORCH=https://download.pytorch.org/whl/cpu
ARG EXTRAS=
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1

RUN pip install --index-url "$TORCH" torch torchvision
WORKDIR /opt/fedcl
COPY pyproject.toml README.md LICENSE ./
COPY fedcl ./fedcl
RUN pip install ".${EXTRAS:+[$EXTRAS]}" && useradd --create-home --uid 1000 fedcl

USER fedcl
WORKDIR /srv
ENTRYPOINT ["fedcl"]
CMD ["--help"]

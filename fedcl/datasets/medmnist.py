"""MedMNIST, 2-D medical images of 28×28: medmnist:pneumoniamnist, medmnist:breastmnist and nine more.

CC BY 4.0, dermamnist CC BY-NC 4.0.

References:
    Yang, Shi, Wei, Liu, Zhao, Ke, Pfister, Ni. MedMNIST v2 - A large-scale lightweight benchmark for 2D and 3D
        biomedical image classification. Scientific Data 2023. arXiv 2110.14795.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from types import ModuleType
from zipfile import BadZipFile

import numpy as np

from fedcl.contracts import TEST, TRAIN, VAL, FedclError, Samples
from fedcl.datasets import _files

_BODY = "bladder,left femur,right femur,heart,left kidney,right kidney,liver,left lung,right lung,pancreas,spleen"
CLASSES = {
    "bloodmnist": "basophil,eosinophil,erythroblast,immature granulocyte,lymphocyte,monocyte,neutrophil,platelet",
    "breastmnist": "malignant,normal or benign",
    "dermamnist": "actinic keratosis or carcinoma in situ,basal cell carcinoma,benign keratosis-like lesion,"
    "dermatofibroma,melanoma,melanocytic nevus,vascular lesion",
    "octmnist": "choroidal neovascularization,diabetic macular edema,drusen,normal",
    "organamnist": _BODY,
    "organcmnist": _BODY,
    "organsmnist": _BODY,
    "pathmnist": "adipose,background,debris,lymphocytes,mucus,smooth muscle,normal colon mucosa,"
    "cancer-associated stroma,colorectal adenocarcinoma epithelium",
    "pneumoniamnist": "normal,pneumonia",
    "retinamnist": "grade 0,grade 1,grade 2,grade 3,grade 4",
    "tissuemnist": "collecting duct or connecting tubule,distal convoluted tubule,"
    "glomerular endothelial cell,interstitial endothelial cell,leukocyte,podocyte,"
    "proximal tubule segment,thick ascending limb",
}


def build(root: Path, *, variant: str = "pneumoniamnist") -> Samples:
    """X [N, channels, 28, 28] uint8 with the published split into three, from root/medmnist/<variant>.npz.

    Args:
        root: the data root.
        variant: one of `CLASSES`; chestmnist is not, since its images have several labels each.

    Raises:
        FedclError: no such variant, or its file is missing or damaged.
    """
    classes = _classes(variant)
    (path,) = sought(root, variant=variant)
    _files.need(f"medmnist:{variant}", [path])
    names = {"train": TRAIN, "val": VAL, "test": TEST}
    try:
        with np.load(path, allow_pickle=False) as archive:
            images = [archive[f"{name}_images"] for name in names]
            labels = [archive[f"{name}_labels"].reshape(-1) for name in names]
        x = np.concatenate(images)
        y = np.concatenate(labels).astype(np.int64)
    except (ValueError, KeyError, OSError, EOFError, BadZipFile, TypeError) as error:
        raise _files.damaged(f"medmnist:{variant}", path, error) from error
    x = x[:, None] if x.ndim == 3 else np.ascontiguousarray(x.transpose(0, 3, 1, 2))
    split = np.repeat(np.array(list(names.values()), np.int8), [len(part) for part in labels])
    return Samples(x, y, classes, split=split)


def sought(root: Path, *, variant: str = "pneumoniamnist") -> list[Path]:
    """The file that it reads."""
    return [root / "medmnist" / f"{variant}.npz"]


def fetch(root: Path, *, variant: str = "pneumoniamnist") -> None:
    """Download it, through the `medmnist` package.

    Raises:
        FedclError: no such variant, or the package is not installed.
    """
    _classes(variant)
    package = _package(variant)
    (root / "medmnist").mkdir(exist_ok=True)
    kind = getattr(package, package.INFO[variant]["python_class"])
    kind(split="train", root=str(root / "medmnist"), download=True)


def _classes(variant: str) -> tuple[str, ...]:
    if variant not in CLASSES:
        near = difflib.get_close_matches(variant, CLASSES, n=1)
        hint = f"did you mean medmnist:{near[0]}? " if near else ""
        raise FedclError(f"--dataset medmnist:{variant}: no such variant; {hint}there are: {', '.join(CLASSES)}")
    return tuple(CLASSES[variant].split(","))


def _package(variant: str) -> ModuleType:
    try:
        import medmnist
    except ImportError as error:
        raise FedclError(
            f"fedcl data fetch medmnist:{variant} needs a package: pip install 'fedcl[medmnist]'; or put "
            f"{variant}.npz into the folder medmnist of the data root by hand"
        ) from error
    module: ModuleType = medmnist
    return module

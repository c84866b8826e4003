"""fedcl: federated continual learning."""

"""What the hospitals train: `dynamic_net` (trunk, task modules, gates) and one file per trunk."""

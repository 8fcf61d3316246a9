"""Networks that turn images into features, one file each; `eval.features` opens them by name."""

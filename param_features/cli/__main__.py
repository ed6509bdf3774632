"""`python -m param_features.cli`: the command line, for `accelerate launch -m param_features.cli …`."""

from param_features.cli.app import main

if __name__ == "__main__":
    main(name="python -m param_features.cli")

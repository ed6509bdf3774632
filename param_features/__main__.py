"""`python -m param_features`: the command line, the same as `param-features`."""

from param_features.cli import main

if __name__ == "__main__":
    main(name="python -m param_features")

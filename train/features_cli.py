"""Former name of `fluxtalk.train.features.cli`, which torchrun lines from before have."""

from fluxtalk.train.features.cli import main

if __name__ == "__main__":
    main()

"""Train a model that counts the items in a bin: `python train.py model=resnet50 data=abid trainer=gpu`."""

from binventory.launch.entry import main

if __name__ == "__main__":
    main("train")

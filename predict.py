"""Count the items on photos with a trained model: `python predict.py run=outputs/train/… input=photos/`."""

from binventory.launch.entry import main

if __name__ == "__main__":
    main("predict")

"""Made-up products: what a drawn item is, looks like, measures and weighs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from binventory.data.synthetic.draw import Color

# Colours as they look under a neutral lamp; the photo's light is warm and dim.
KRAFT: tuple[Color, ...] = ((186, 148, 104), (172, 134, 92), (160, 122, 84), (198, 164, 122))
BRIGHT: tuple[Color, ...] = (
    (196, 52, 44),
    (222, 118, 40),
    (38, 84, 160),
    (30, 134, 138),
    (58, 130, 70),
    (112, 62, 138),
    (206, 98, 136),
    (236, 196, 60),
)
DARK: tuple[Color, ...] = ((44, 44, 50), (34, 46, 74), (70, 44, 40), (40, 62, 52), (66, 66, 72))
PALE: tuple[Color, ...] = ((232, 230, 224), (208, 214, 220), (222, 206, 186), (188, 200, 196), (150, 154, 160))


@dataclass(frozen=True)
class Kind:
    """A kind of item.

    Attributes:
        name: what `items` draws.
        nouns: what such a thing is called in the metadata.
        slimmest, widest: bounds of its front's width over its height.
        colors: what its body may be painted in.
        density: pounds per cubic inch.
        max_tilt: largest turn in the plane of the photo, in degrees.
    """

    name: str
    nouns: tuple[str, ...]
    slimmest: float
    widest: float
    colors: tuple[Color, ...]
    density: float
    max_tilt: float


KINDS = (
    Kind("carton", ("Desk Lamp", "Door Hinge Set", "Air Filter", "Spice Rack"), 0.4, 3.0, KRAFT, 0.012, 3),
    Kind("box", ("Board Game", "Toy Train", "Router", "Tea Sampler"), 0.4, 2.6, BRIGHT + PALE + DARK, 0.014, 4),
    Kind("book", ("Cookbook", "Field Guide", "Puzzle Book", "Road Atlas"), 0.12, 0.85, BRIGHT + DARK, 0.026, 7),
    Kind("flat", ("Photo Album", "Sketch Pad", "Place Mats", "Notebook Set"), 1.3, 7.0, BRIGHT + DARK + PALE, 0.024, 3),
    Kind("bottle", ("Shampoo", "Dish Soap", "Olive Oil", "Vitamins"), 0.18, 0.75, BRIGHT + PALE + DARK, 0.030, 3),
    Kind("can", ("Wood Stain", "Loose Tea", "Paint", "Tennis Balls"), 0.45, 1.5, BRIGHT + PALE + DARK, 0.034, 2),
    Kind("bag", ("T-Shirt", "Phone Cable", "Seat Cover", "Yoga Strap"), 0.5, 2.6, DARK + PALE + BRIGHT, 0.008, 9),
    Kind("pouch", ("Trail Mix", "Ground Coffee", "Cat Treats", "Bath Salt"), 0.5, 1.3, BRIGHT + KRAFT + DARK, 0.016, 5),
)

BRANDS = ("NORVIK", "TAVO", "LUMEN", "OKAPI", "BRIO", "HALDEN", "MIRA", "QUILL", "SOLENT", "VELA", "ZEPHYR", "PICO")
VARIANTS = ("Classic", "Compact", "Everyday", "Original", "Travel", "Family", "Studio", "Garden")
ASIN_LETTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Product:
    """What all units of one ASIN share.

    Attributes:
        asin: ten letters and digits, as in the public data set.
        name: title in the catalogue.
        brand: the word printed on it.
        kind: what it is.
        color, accent: paint of its body and of its print.
        look: seed of its print.
    """

    asin: str
    name: str
    brand: str
    kind: Kind
    color: Color
    accent: Color
    look: int


def make_product(rng: np.random.Generator, shape: float) -> Product:
    """Draw a product whose front may be `shape` times as wide as high."""
    fitting = [kind for kind in KINDS if kind.slimmest <= shape <= kind.widest] or [KINDS[1]]
    kind = fitting[rng.integers(len(fitting))]
    color = kind.colors[rng.integers(len(kind.colors))]
    accents = [accent for accent in BRIGHT + PALE + DARK if contrast(accent, color) > 90]
    brand = BRANDS[rng.integers(len(BRANDS))]
    variant, noun = VARIANTS[rng.integers(len(VARIANTS))], kind.nouns[rng.integers(len(kind.nouns))]
    asin = "B0" + "".join(ASIN_LETTERS[i] for i in rng.integers(len(ASIN_LETTERS), size=8))
    name = f"{brand.title()} {variant} {noun}, Model {rng.integers(100, 1000)}"
    accent = accents[rng.integers(len(accents))]
    return Product(asin, name, brand, kind, color, accent, int(rng.integers(2**31)))


def contrast(first: Color, second: Color) -> int:
    """Difference of two colours' brightness, 0..255, or of their strongest channel if that is more."""
    return max(abs(a - b) for a, b in zip((*first, sum(first) // 3), (*second, sum(second) // 3), strict=True))

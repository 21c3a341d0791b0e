"""The fabric pod around the items: walls behind them, mesh bands and hems in front."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from binventory.data.synthetic.draw import INK, Color, blend, from_array, matrix_code, shade, write
from binventory.data.synthetic.layout import Room

FABRICS: tuple[Color, ...] = ((214, 186, 104), (206, 172, 92), (222, 196, 120), (212, 164, 84), (196, 176, 118))
FLOORS: tuple[Color, ...] = ((150, 138, 112), (124, 112, 92), (160, 142, 100))
MESHES: tuple[Color, ...] = ((214, 210, 204), (188, 180, 168), (120, 112, 104))
TAGS: tuple[Color, ...] = ((190, 62, 60), (84, 130, 178), (70, 52, 92), (224, 140, 60), (52, 66, 104), (216, 140, 150))
LETTERS = "ABCDEFGHJK"


@dataclass(frozen=True)
class Pod:
    """One bin of a pod, as a camera sees it. Lengths are shares of the photo's width.

    Attributes:
        aspect: the photo's height.
        room: the inside, where items stand.
        inset: how far the back wall's sides lie inside the opening: the perspective.
        fabric, floor, mesh: colours.
        hem: height of the front edge at its sides; it sags by `sag` towards its middle.
        bands: (top, bottom, opacity) of each mesh band.
        tag: the slot's name on the front edge.
        tag_x: middle of that label.
        tag_color: its coloured field.
        hook: height of a steel hook across the opening; None for most bins.
        look: seed of the rest.
    """

    aspect: float
    room: Room
    inset: float
    fabric: Color
    floor: Color
    mesh: Color
    hem: float
    sag: float
    bands: tuple[tuple[float, float, float], ...]
    tag: str
    tag_x: float
    tag_color: Color
    hook: float | None
    look: int


def make_pod(rng: np.random.Generator) -> Pod:
    """Draw a bin of a pod."""
    aspect = rng.uniform(0.68, 1.0)
    hem, ceiling = rng.uniform(0.07, 0.1), rng.uniform(0.04, 0.09)
    front = aspect - hem - 0.01
    room = Room(0.05, 0.95, ceiling + 0.02, front - rng.uniform(0.05, 0.09), front + 0.02)
    height = front - ceiling
    first, second = ceiling + height * rng.uniform(0.1, 0.3), ceiling + height * rng.uniform(0.6, 0.75)
    bands = [(y, y + height * rng.uniform(0.14, 0.22), rng.uniform(0.3, 0.5)) for y in (first, second)]
    return Pod(
        aspect=aspect,
        room=room,
        inset=rng.uniform(0.04, 0.09),
        fabric=_one_of(rng, FABRICS),
        floor=_one_of(rng, FLOORS),
        mesh=_one_of(rng, MESHES),
        hem=hem,
        sag=rng.uniform(-0.005, 0.02),
        bands=tuple(bands[: int(rng.choice((1, 2, 2)))]) if rng.random() < 0.92 else (),
        tag=f"{rng.integers(1, 5)}{LETTERS[rng.integers(len(LETTERS))]}",
        tag_x=rng.uniform(0.3, 0.7),
        tag_color=_one_of(rng, TAGS),
        hook=ceiling + height * rng.uniform(0.4, 0.55) if rng.random() < 0.12 else None,
        look=int(rng.integers(2**31)),
    )


def _one_of(rng: np.random.Generator, colors: tuple[Color, ...]) -> Color:
    return colors[rng.integers(len(colors))]


def paint_walls(pod: Pod, width: int) -> Image.Image:
    """Paint the empty bin: an RGB picture `width` pixels wide."""
    height = round(pod.aspect * width)
    picture = Image.new("RGB", (width, height), shade(pod.fabric, 0.5))
    pen = ImageDraw.Draw(picture)
    left, right = pod.inset * width, (1 - pod.inset) * width
    top, back = (pod.room.top + pod.inset * 0.5) * width, pod.room.back * width
    pen.polygon([(0, 0), (left, top), (left, back), (0, height)], shade(pod.fabric, 0.78))
    pen.polygon([(width, 0), (right, top), (right, back), (width, height)], shade(pod.fabric, 0.7))
    pen.polygon([(0, 0), (left, top), (right, top), (width, 0)], shade(pod.fabric, 0.4))
    pen.polygon([(0, height), (left, back), (right, back), (width, height)], shade(pod.floor, 0.9))
    pen.rectangle((left, top, right, back), shade(pod.fabric, 0.62))
    seam = shade(pod.fabric, 0.42)
    pen.line([(left, top), (left, back), (right, back), (right, top)], seam, 3)
    weave = _weave().crop((0, 0, width, height)) if width <= WEAVE_SIZE else _weave().resize((width, height))
    return ImageChops.multiply(picture, weave)


WEAVE_SIZE = 512


@cache
def _weave() -> Image.Image:
    """Threads and creases of the fabric, as a picture to multiply by."""
    rng = np.random.default_rng(0)
    threads = (
        rng.normal(0, 5, (WEAVE_SIZE, 1))
        + rng.normal(0, 5, (1, WEAVE_SIZE))
        + rng.normal(0, 5, (WEAVE_SIZE, WEAVE_SIZE))
    )
    coarse = from_array(rng.normal(128, 40, (10, 10))).resize((WEAVE_SIZE, WEAVE_SIZE), Image.Resampling.BICUBIC)
    light = 236 + threads + (np.asarray(coarse, float) - 128) * 0.25
    return Image.merge("RGB", [from_array(light)] * 3)


def paint_front(pod: Pod, picture: Image.Image) -> None:
    """Paint what hangs before the items over them: mesh, hook, hems and the slot's label."""
    rng = np.random.default_rng(pod.look)
    for top, bottom, opacity in pod.bands:
        _paint_mesh(picture, rng, pod, (top * picture.width, bottom * picture.width), opacity)
    pen = ImageDraw.Draw(picture)
    if pod.hook is not None:
        _paint_hook(pen, rng, picture.width, pod.hook * picture.width)
    _paint_hems(pen, pod, picture.width, picture.height)
    _paint_tag(pen, rng, pod, picture.width, picture.height)


def _paint_mesh(
    picture: Image.Image, rng: np.random.Generator, pod: Pod, span: tuple[float, float], opacity: float
) -> None:
    """Elastic threads across the opening, and the haze between them."""
    top, bottom = int(span[0]), int(span[1])
    height, width = bottom - top, picture.width
    mask = Image.new("L", (width, height), int(255 * opacity * 0.3))
    pen = ImageDraw.Draw(mask)
    bow = rng.uniform(-0.06, 0.06) * height
    x = np.linspace(0, width, 7)
    for y in np.arange(2.0, height, rng.uniform(5.0, 8.0)):
        bent = y + bow * np.sin(np.pi * x / width) + rng.normal(0, 0.4)
        pen.line(list(zip(x.tolist(), bent.tolist(), strict=True)), int(255 * min(1.0, opacity * 1.5)), 2)
    picture.paste(pod.mesh, (0, top), mask)
    sides = ImageDraw.Draw(picture)
    for left in (0, width - int(0.035 * width)):  # where the band is sewn to the wall
        sides.rectangle((left, top, left + int(0.035 * width), bottom), blend(pod.mesh, pod.fabric, 0.4))


def _paint_hook(pen: ImageDraw.ImageDraw, rng: np.random.Generator, width: int, y: float) -> None:
    steel, light = (128, 128, 130), (196, 196, 198)
    middle, link = width * rng.uniform(0.3, 0.7), width * 0.11
    pen.line((0, y + rng.uniform(-4, 4), width, y + rng.uniform(-4, 4)), steel, max(3, width // 70))
    box = (middle - link, y - link * 0.3, middle + link, y + link * 0.3)
    pen.rounded_rectangle(box, link * 0.3, outline=light, width=max(3, width // 60))


def _paint_hems(pen: ImageDraw.ImageDraw, pod: Pod, width: int, height: int) -> None:
    x = np.linspace(0, width, 15)
    edge = height - pod.hem * width + pod.sag * width * np.sin(np.pi * x / width)
    curve = list(zip(x.tolist(), edge.tolist(), strict=True))
    pen.line([(at, y - 3) for at, y in curve], shade(pod.fabric, 0.35), 5)
    pen.polygon([*curve, (width, height), (0, height)], pod.fabric)
    pen.line(curve, shade(pod.fabric, 1.15), 3)
    pen.line([(at, y + pod.hem * width * 0.35) for at, y in curve], shade(pod.fabric, 0.75), 1)
    ceiling = (pod.room.top - 0.02) * width
    pen.rectangle((0, 0, width, ceiling), shade(pod.fabric, 0.94))
    pen.line((0, ceiling, width, ceiling), shade(pod.fabric, 0.5), 4)


def _paint_tag(pen: ImageDraw.ImageDraw, rng: np.random.Generator, pod: Pod, width: int, height: int) -> None:
    high, wide = pod.hem * width * 0.72, width * 0.2
    left, top = pod.tag_x * width - wide / 2, height - high - 2 + 0.2 * pod.sag * width
    pen.rounded_rectangle((left, top, left + wide, top + high), 3, pod.tag_color)
    pen.rectangle((left + wide * 0.1, top + high * 0.12, left + wide * 0.52, top + high * 0.88), (228, 222, 210))
    write(pen, pod.tag, (left + wide * 0.1, top, left + wide * 0.52, top + high), INK)
    matrix_code(pen, rng, (left + wide * 0.6, top + high * 0.1, left + wide * 0.6 + high * 0.8, top + high * 0.9))

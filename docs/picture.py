"""A terminal's contents as a PNG; how ``docs/run.png`` is made, in a shell with tmux and the environment active:

tmux new-session -d -s run -x 104 -y 60 'python -m tinyllm.train; sleep 999'
tmux capture-pane -t run -e -p | python docs/picture.py docs/run.png 'python -m tinyllm.train'
"""

import sys
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.style import Style
from rich.terminal_theme import MONOKAI
from rich.text import Text

SIZE, PAD, TOP = 20, 22, 50
BACK, FRONT, DIM = (30, 31, 38), (215, 217, 225), (150, 152, 165)
COLOURS = {
    1: (255, 95, 95),
    2: (130, 200, 90),
    3: (235, 200, 90),
    4: (100, 150, 255),
    5: (190, 140, 240),
    6: (95, 190, 215),
}
BUTTONS = ((255, 95, 87), (254, 188, 46), (40, 200, 64))
# Line characters are drawn, so that they join: which of left, right, up, down they reach, and how thick they are.
LINES = {"─": "lr", "│": "ud", "╭": "rd", "╮": "ld", "╰": "ru", "╯": "lu", "━": "lr", "╸": "l", "╺": "r"}
THICK = "━╸╺"


def font(style: Style | None) -> ImageFont.FreeTypeFont:
    """DejaVu Sans Mono, which comes with matplotlib."""
    face = ("Bold" if style and style.bold else "") + ("Oblique" if style and style.italic else "")
    name = "DejaVuSansMono" + (f"-{face}" if face else "")
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf", SIZE)


def colour(style: Style | None) -> tuple[int, int, int]:
    """The foreground of a style."""
    if style is None or style.color is None or style.color.is_default:
        return FRONT
    if style.color.number is not None and style.color.number % 8 in COLOURS and style.color.number < 16:
        return COLOURS[style.color.number % 8]
    return tuple(style.color.get_truecolor(MONOKAI))


def draw(captured: str, title: str) -> Image.Image:
    """The text, with its escape sequences, in a window."""
    lines = Text.from_ansi(captured.rstrip("\n")).split("\n", allow_blank=True)
    columns = max(line.cell_len for line in lines)
    width, height = font(None).getlength("M"), round(SIZE * 1.28)
    image = Image.new("RGB", (round(width * columns) + 2 * PAD, TOP + height * len(lines) + PAD), BACK)
    canvas = ImageDraw.Draw(image)
    for index, button in enumerate(BUTTONS):
        canvas.ellipse((PAD + index * 28, 17, PAD + index * 28 + 16, 33), fill=button)
    canvas.text((image.width / 2, 25), title, font=font(None), fill=DIM, anchor="mm")
    console = Console(width=columns)
    for row, line in enumerate(lines):
        x, y = float(PAD), TOP + row * height
        for segment in line.render(console):
            for character in segment.text.rstrip("\n"):
                left, middle, right = round(x), round(x + width / 2), round(x + width)
                half = 3 if character in THICK else 1
                centre = y + height // 2
                boxes = {
                    "l": (left, centre - half, middle, centre + half - 1),
                    "r": (middle, centre - half, right, centre + half - 1),
                    "u": (middle - half, y, middle + half - 1, centre),
                    "d": (middle - half, centre, middle + half - 1, y + height),
                }
                for end in LINES.get(character, ""):
                    canvas.rectangle(boxes[end], fill=colour(segment.style))
                if character not in LINES:
                    canvas.text((x, y), character, font=font(segment.style), fill=colour(segment.style))
                x += width
    return image


if __name__ == "__main__":
    draw(sys.stdin.read(), sys.argv[2]).save(sys.argv[1], optimize=True)

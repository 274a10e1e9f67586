"""The categories of the demo scenes: what each one looks like and how often it is meant to occur.

A category is one combination of shape, pattern and colours. Frequent ones are plain, common ones
plain or patterned, rare ones carry two strong hues that no frequent category combines, so that a
small detector can tell all of them apart after a few dozen examples.
"""

from dataclasses import dataclass

# Hue, saturation, value in OpenCV's 8-bit ranges (0-179, 0-255, 0-255).
COLOURS = {
    'red': (1, 225, 220),
    'orange': (13, 235, 245),
    'yellow': (27, 225, 250),
    'green': (60, 215, 165),
    'cyan': (92, 215, 235),
    'blue': (112, 225, 215),
    'purple': (135, 190, 170),
    'pink': (164, 170, 250),
    'white': (20, 8, 248),
    'black': (20, 20, 28),
}

SHAPES = ('disc', 'square', 'triangle', 'star', 'cross', 'heart', 'crescent', 'bar')
PATTERNS = ('plain', 'stripes', 'checker', 'dots', 'core')


@dataclass(frozen=True)
class Category:
    """One category of the demo scenes.

    Attributes:
        name: Unique name, LVIS style (lower case, underscores).
        shape: One of ``SHAPES``.
        pattern: One of ``PATTERNS``.
        base: Main colour, a key of ``COLOURS``.
        accent: Second colour of the pattern; equals ``base`` for ``plain``.
        group: Intended LVIS frequency group, ``'r'``, ``'c'`` or ``'f'``.
    """

    name: str
    shape: str
    pattern: str
    base: str
    accent: str
    group: str

    @property
    def definition(self) -> str:
        """One sentence for LVIS's ``def`` field."""
        if self.pattern == 'plain':
            return f'a {self.shape} in plain {self.base}'
        return f'a {self.shape} in {self.base} and {self.accent}, pattern: {self.pattern}'


def _category(group: str, shape: str, pattern: str, base: str, accent: str = '') -> Category:
    colours = f'{base}_{accent}' if accent else base
    return Category(f'{colours}_{shape}', shape, pattern, base, accent or base, group)


# In alphabetical order of the names, as LVIS numbers its categories, so that the groups mix.
CATEGORIES: tuple[Category, ...] = tuple(
    sorted(
        (
            _category('f', 'disc', 'plain', 'red'),
            _category('f', 'square', 'plain', 'blue'),
            _category('f', 'triangle', 'plain', 'green'),
            _category('f', 'star', 'plain', 'yellow'),
            _category('f', 'cross', 'plain', 'white'),
            _category('f', 'bar', 'plain', 'purple'),
            _category('c', 'heart', 'plain', 'orange'),
            _category('c', 'crescent', 'plain', 'cyan'),
            _category('c', 'square', 'plain', 'pink'),
            _category('c', 'disc', 'plain', 'black'),
            _category('c', 'triangle', 'stripes', 'blue', 'white'),
            _category('c', 'star', 'stripes', 'red', 'white'),
            _category('c', 'heart', 'checker', 'green', 'black'),
            _category('c', 'disc', 'stripes', 'yellow', 'black'),
            _category('c', 'cross', 'dots', 'purple', 'white'),
            _category('c', 'bar', 'checker', 'orange', 'black'),
            _category('r', 'disc', 'core', 'red', 'cyan'),
            _category('r', 'crescent', 'stripes', 'pink', 'yellow'),
            _category('r', 'square', 'stripes', 'orange', 'blue'),
            _category('r', 'triangle', 'stripes', 'pink', 'green'),
            _category('r', 'star', 'core', 'black', 'cyan'),
            _category('r', 'heart', 'core', 'yellow', 'purple'),
            _category('r', 'bar', 'stripes', 'white', 'green'),
            _category('r', 'cross', 'core', 'red', 'blue'),
        ),
        key=lambda category: category.name,
    )
)

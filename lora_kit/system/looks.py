"""The one list of colours and signs, for figures, pages and text."""

# at least 3:1 on white and on JupyterLab's dark background, far apart for colour-blind eyes (the first three are Okabe and
# Ito's); each colour has its own dashes, for SVG and for matplotlib
LOOKS = (
    ("#0072B2", "", "-"),
    ("#D55E00", "7 4", "--"),
    ("#009E73", "2 3", ":"),
    ("#B5518B", "10 3 2 3", "-."),
    ("#8C7A00", "4 2", (0, (5, 1))),
    ("#7A6FD0", "5 2 2 2", (0, (3, 1, 1, 1))),
    ("#808080", "12 4", (0, (8, 3))),
    ("#C4472B", "6 2 1 2", (0, (4, 1, 1, 1))),
    ("#2E8B8B", "3 6", (0, (1, 3))),
    ("#A8642A", "9 2 2 2 2 2", (0, (6, 1, 1, 1, 1, 1))),
    ("#4A7FC0", "5 5", (0, (3, 3))),
)
COLOURS = tuple(colour for colour, _, _ in LOOKS)
LINE_STYLES = tuple(style for _, _, style in LOOKS)
SHADE = "#E69F00"  # behind curves: a warm-up
SIGNS = {"error": "✗", "warning": "!", "fine": "✓"}

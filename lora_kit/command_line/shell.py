"""The last command of a shell text, as words, read in one pass: twice the text takes twice the time.

Understood are quotes, comments, lines that a backslash continues, variables that are set above, and what stands before a
command in a README (`$`) or a notebook (`!`, `%%bash`). Nothing is run, and no wildcard is filled in.
"""

import re
from collections.abc import Iterator

from lora_kit.system.checks import shown

LONGEST = (
    100_000  # characters of a text, and of what its variables are filled in with; parsers take a second for so many
)
_VARIABLE = r"\$(?:[A-Za-z_][A-Za-z0-9_]* | \{[A-Za-z_][A-Za-z0-9_]*\})"
# No quantifier stands inside another one over the same characters, so that no text makes these try more than once.
PROMPT = re.compile(r"\$(?=\s)|!|%%?\w+")
TOKEN = re.compile(
    rf"""(?P<continued> \\ [^\S\n]* (?: \n\s* | \Z ) )   # also with blanks after the backslash, and empty lines
    | \\ (?P<escaped> . )
    | ' (?P<single> [^']* ) '
    | " (?P<double> (?: [^"\\] | \\. )* ) "
    | (?P<variable> {_VARIABLE} )
    | (?P<newline> \n )
    | (?P<blank> [^\S\n]+ )
    | (?P<plain> [^\s\\'"$]+ | \$ )
    | (?P<unclosed> ['"] )""",
    re.VERBOSE | re.DOTALL,
)
INSIDE_DOUBLE = re.compile(rf'\\ (?P<escaped> [$`"\\\n] ) | (?P<variable> {_VARIABLE} )', re.VERBOSE)


def last_command(text: str) -> list[str]:
    """The words of the last command in a shell text, continued lines joined and variables filled in.

    A variable that isn't set stays as it is. Raises ValueError where there is no command, where a quotation isn't closed,
    and where variables grow beyond `LONGEST`.

    >>> last_command("export DATA='my pictures'\\n$ python train.py --data=\\"$DATA\\"  # on one GPU")
    ['python', 'train.py', '--data=my pictures']
    """
    variables, command = _Variables(), []
    for words in _lines(text, variables):
        exported = words[0] == "export"
        start = 1 if exported else 0
        while start < len(words) and (assignment := _assignment(words[start])):
            variables.update([assignment])
            start += 1
        if start < len(words) and not exported:
            command = words[start:]
    if not command:
        raise ValueError("no command in the text: it has comments and variables only")
    return command


class _Variables(dict):
    """Variables by name, which count what they are filled in with."""

    characters = 0

    def fill(self, text: str) -> str:
        """The value of "$NAME" or "${NAME}"; the text itself where that isn't set."""
        value = self.get(text.strip("${}"), text)
        self.characters += len(value)
        if self.characters > LONGEST:
            raise ValueError(f"the variables of this text come to more than {LONGEST:,} characters, by {shown(text)}")
        return value


def _assignment(word):
    """(name, value) of "NAME=value"; None for any other word."""
    name, equals, value = word.partition("=")
    return (name, value) if equals and name.isascii() and name.isidentifier() else None


class _Line:
    """The words of a line, and the pieces of the one that is being read: None between two words."""

    def __init__(self):
        self.words, self.pieces = [], None

    def add(self, piece: str) -> None:
        self.pieces = [] if self.pieces is None else self.pieces
        self.pieces.append(piece)

    def end_word(self) -> None:
        if self.pieces is not None:
            self.words.append("".join(self.pieces))
        self.pieces = None


def _lines(text: str, variables: _Variables) -> Iterator[list[str]]:
    """The words of each line that has any. A line is filled in when it is reached, with what `variables` are by then."""
    line, at = _Line(), 0
    while at < len(text):
        if line.pieces is None:
            prompt = None if line.words else PROMPT.match(text, at)
            at = prompt.end() if prompt else at
            if text.startswith("#", at):
                newline = text.find("\n", at)
                at = newline if newline >= 0 else len(text)
            if at == len(text):
                break
        token = TOKEN.match(text, at)
        kind, piece, start, at = token.lastgroup, token[token.lastgroup], at, token.end()
        if kind == "unclosed":
            raise ValueError(f"a line that can't be read (No closing quotation): {shown(text[start : start + 80])}")
        if kind in ("continued", "blank", "newline"):
            line.end_word()
        elif kind == "variable":
            for index, part in enumerate(re.split(r"\s+", variables.fill(piece))):
                if index:
                    line.end_word()
                if part:
                    line.add(part)
        else:
            line.add(_inside_double(piece, variables) if kind == "double" else piece)
        if kind == "newline" and line.words:
            yield line.words
            line = _Line()
    line.end_word()
    if line.words:
        yield line.words


def _inside_double(text, variables):
    """What stands between two double quotes, where a backslash means something before $, `, ", itself and a new line only."""

    def meaning(match):
        if match.lastgroup == "variable":
            return variables.fill(match[0])
        return match["escaped"].strip("\n")

    return INSIDE_DOUBLE.sub(meaning, text)

"""The commands of a shell text, as words, read in one pass: twice the text takes twice the time.

Understood are quotes, comments, lines that go on, variables that are set above, what parts commands or sends their output
elsewhere, and what stands before a command at a prompt (`$`) or in a notebook (`!`, `%%bash`). Nothing is run, and no
wildcard is filled in.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from lora_kit.command_line.shells import ASSIGNMENT, BASH, POWERSHELL, PROMPT, VALUE, shell_of
from lora_kit.system.checks import shown

LONGEST = (
    100_000  # characters of a text, and of what its variables are filled in with; parsers take a second for so many
)
SHOWN_AS_THEY_ARE = 3  # of many variables that aren't set
EXPORTS = ("export", "declare", "typeset", "readonly", "local")
SETS = ("set", "setx", "setenv")  # cmd's `set NAME=value with blanks`, `setx NAME value`, fish's `set -gx NAME value`
FLAG = re.compile("--?[A-Za-z]")
PARENTHESIS = re.compile(r"[()]")


@dataclass
class Command:
    """One command of a text.

    words: quotes taken off, variables filled in. as_they_are: what could not be filled in, such as "$DATA". odd: sentences
    on what no shell would read so. end: what parts it from the next one. gpus: CUDA_VISIBLE_DEVICES, where it is set.
    """

    words: list[str] = field(default_factory=list)
    as_they_are: list[str] = field(default_factory=list)
    odd: dict[str, None] = field(default_factory=dict)
    end: str = "\n"
    gpus: str | None = None


def commands(text: str) -> list[Command]:
    """The commands of a shell text, lines that go on joined and variables filled in.

    A variable that isn't set stays as it is. Raises ValueError where there is no command, where a quotation isn't closed,
    and where variables grow beyond `LONGEST`.

    >>> [one.words for one in commands("export DATA='my pictures'; python train.py --data=\\"$DATA\\" > log  # on one GPU")]
    [['python', 'train.py', '--data=my pictures']]
    """
    variables, found = _Variables(), []
    for line in _lines(text, variables):
        start = _take_assignments(line, variables)
        words = line.words[start:]
        if not words:
            continue
        as_they_are = [part for parts in line.unfilled[start:] for part in parts]
        if FLAG.match(words[0]) and found and found[-1].end == "\n":
            found[-1].words += words
            found[-1].as_they_are += as_they_are
            found[-1].odd |= line.odd | {"a line that starts with a flag is read as part of the command above it": None}
            found[-1].end = line.end
        else:
            gpus = variables.get("CUDA_VISIBLE_DEVICES", (None, ()))[0]
            found.append(Command(words, as_they_are, line.odd, line.end, gpus))
    if not found:
        raise ValueError("no command in the text: it has comments and variables only")
    return found


def left_as_they_are(parts: Iterable[str]) -> list[str]:
    """A sentence on each of the first few things that a command has, but no value for, such as a variable that isn't set."""
    parts = list(dict.fromkeys(parts))
    sentences = []
    for part in parts[:SHOWN_AS_THEY_ARE]:
        quoted = shown(part if len(part) <= 60 else f"{part[:60]}...")
        if part.startswith("<"):
            sentences.append(f"{quoted} stands for something of yours: put that in its place")
        elif part.startswith(("$(", "`")):
            sentences.append(f"{quoted} is a command within the command, which is not run: it stays as it is")
        else:
            sentences.append(f"{quoted} isn't set in this text: it stays as it is")
    more = len(parts) - len(sentences)
    return sentences + ([f"so do {more:,} more"] if more else [])


class _Variables(dict):
    """(value, what in it could not be filled in) by name, which counts what is filled in."""

    characters = 0

    def fill(self, text: str) -> tuple[str, tuple[str, ...]]:
        """The value of "$NAME", "${NAME}" or "${NAME:-default}"; the text itself where there is none."""
        match = VALUE.fullmatch(text)
        otherwise = (text, (text,)) if match is None or match["default"] is None else (match["default"], ())
        value, unfilled = self.get(match["name"], otherwise) if match else otherwise
        self.characters += len(value)
        if self.characters > LONGEST:
            raise ValueError(f"the variables of this text come to more than {LONGEST:,} characters, by {shown(text)}")
        return value, unfilled


class _Line:
    """The words of one command, what in each could not be filled in, and the pieces of the word that is being read."""

    def __init__(self):
        self.words, self.unfilled, self.odd, self.end = [], [], {}, "\n"
        self.pieces, self.open = None, []  # None between two words
        self.sets = None  # the name of PowerShell's variable that this line sets
        self.drops = False  # the next word is where the output goes

    def add(self, piece: str, unfilled: Iterable[str] = ()) -> None:
        self.pieces = [] if self.pieces is None else self.pieces
        self.pieces.append(piece)
        self.open += unfilled

    def end_word(self) -> None:
        if self.pieces is not None:
            if not self.drops:
                self.words.append("".join(self.pieces))
                self.unfilled.append(tuple(dict.fromkeys(self.open)))
            self.drops = False
        self.pieces, self.open = None, []


def _take_assignments(line, variables):
    """Set the variables that a line sets; returns the index of its first word that is none."""
    words = line.words
    if line.sets:
        variables[line.sets] = (" ".join(words), tuple(part for parts in line.unfilled for part in parts))
        return len(words)
    if words and words[0].lower() in SETS:
        first = next((index for index, word in enumerate(words) if index and not word.startswith("-")), len(words))
        rest = " ".join(words[first:])
        name, _, value = rest.partition("=" if "=" in rest else " ")
        variables[name.strip()] = (value, tuple(part for parts in line.unfilled for part in parts))
        return len(words)
    start = exported = int(bool(words) and words[0] in EXPORTS)
    while start < len(words):
        name, equals, value = words[start].partition("=")
        if equals and name.isascii() and name.isidentifier():
            variables[name] = (value, line.unfilled[start])
        elif not exported:
            break
        start += 1
    return start


def _lines(text: str, variables: _Variables) -> Iterator[_Line]:
    """Each command of a text. It is filled in when it is reached, with what `variables` are by then."""
    shell, line, at = shell_of(text), _Line(), 0
    while at < len(text):
        if line.pieces is None:
            at = _before_word(text, at, line)
            if at == len(text):
                break
        token = shell.token.match(text, at)
        kind, piece, start, at = token.lastgroup, token[token.lastgroup], at, token.end()
        if kind == "unclosed":
            rest = text[start : start + 80]
            hint = '; \\" is a letter of it, not its end' if '\\"' in rest and shell is not POWERSHELL else ""
            raise ValueError(f"a line that can't be read (No closing quotation): {shown(rest)}{hint}")
        if kind in ("continued", "blank", "end", "copy", "redirect"):
            line.end_word()
            line.drops = kind == "redirect" or (line.drops and kind in ("blank", "continued"))
        elif kind == "variable":
            value, unfilled = variables.fill(piece)
            for index, part in enumerate([value] if unfilled else re.split(r"\s+", value)):
                if index:
                    line.end_word()
                if part:
                    line.add(part, unfilled)
        elif kind == "opened":
            at = _closed(text, at)
            line.drops = line.drops or piece != "$("  # <(...) and >(...)
            line.add(text[start:at], [text[start:at]])
        elif kind == "path" and piece.endswith("\\") and text[at : at + 1] in ("", "\r", "\n"):
            at -= 1  # the last backslash continues the line
            line.add(piece[:-1])
        elif kind != "nothing":
            _add(line, kind, piece, variables, shell)
        if kind == "end":
            line.end = piece
            if line.words or line.sets:
                yield line
            line = _Line()
    line.end_word()
    if line.words or line.sets:
        yield line


def _before_word(text, at, line):
    """Where the next word starts, past a prompt, PowerShell's `$NAME =` and a comment."""
    if not line.words and not line.sets:
        if prompt := PROMPT.match(text, at):
            at = prompt.end()
        elif assignment := ASSIGNMENT.match(text, at):
            line.sets, at = assignment[1], assignment.end()
    if text.startswith("#", at):
        newline = text.find("\n", at)
        return newline if newline >= 0 else len(text)
    return at


def _closed(text, at):
    """The end of the parentheses that are open at a place; of the text where they stay open."""
    depth = 1
    for parenthesis in PARENTHESIS.finditer(text, at):
        depth += 1 if parenthesis[0] == "(" else -1
        if depth == 0:
            return parenthesis.end()
    return len(text)


def _add(line, kind, piece, variables, shell):
    """Add to a line a token that is part of a word and no variable."""
    if kind == "double":
        piece = _inside_double(piece, line, variables, shell)
    elif kind == "single" and shell is not BASH:
        piece = piece.replace("''", "'")
    elif kind in ("curly", "curly_single"):
        line.odd["curly quotation marks, which no shell knows, are read as straight ones"] = None
    elif kind == "dash":
        line.odd["a long dash before a flag is read as --"] = None
        piece = "--"
    line.add(piece, [piece] if kind in ("placeholder", "substituted") else ())


def _inside_double(text, line, variables, shell):
    """What stands between two double quotes, where few things have a meaning: in bash $, `, ", \\ and a new line."""

    def meaning(match):
        kind, piece = match.lastgroup, match[match.lastgroup]
        if kind == "variable":
            piece, unfilled = variables.fill(piece)
            line.open.extend(unfilled)
        elif kind == "opened":
            line.open.append(piece)
        return piece.strip("\n") if kind == "escaped" else piece

    return shell.inside_double.sub(meaning, text)

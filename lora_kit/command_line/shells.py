"""What three shells write differently, as regular expressions: bash and its kin, PowerShell, and Windows' command prompt.

No quantifier stands inside another one over the same characters, and where a match can fail anywhere it is bounded: no text
makes these try more than once.
"""

import re
from dataclasses import dataclass

NAME = r"[A-Za-z_][A-Za-z0-9_]*"
_DOLLAR = rf"\$ (?: (?i:env:)? {NAME} | \{{ [^{{}}\n]* \}} )"
_PERCENT = rf"% {NAME} %"
_KNOWN = "%(?:USERPROFILE|USERNAME|HOMEPATH|APPDATA|LOCALAPPDATA|TEMP|TMP|CD)%"
ASSIGNMENT = re.compile(rf"\$ (?i:env:)? ({NAME}) [^\S\n]* = [^\S\n]*", re.VERBOSE)  # PowerShell's
VALUE = re.compile(rf"[$%]\{{? (?i:env:)? (?P<name>{NAME}) (?: :?[-=] (?P<default>[^}}]*) )? [%}}]?", re.VERBOSE)
PROMPT = re.compile(
    r"""\$(?=\s) | ! | %%?\w+(?![\w%]) | %(?=\s) | >{1,3}(?=\s) | [❯➜λ](?=\s)   # with a notebook's !, %env and %%bash
    | \( [\w.-]{1,64} \) (?=\s)                                                 # (venv)
    | \( (?=\s*[\w.]) | In\ \[\d{1,6}\]: | PS\ [^>\n]{0,200}> | [A-Za-z]:\\[^<>|"\s]{0,200}>
    | \[? [\w.-]{1,64} @ [\w.-]{1,64} [:\ ] [^\s$\#%>]{0,200} [$\#%] (?=\s)     # user@host:~/folder#
    | (?i: @?rem(?=\s) | :: ) [^\n]*                                            # a comment, of Windows""",
    re.VERBOSE,
)
_POWERSHELL = re.compile(
    rf"\$env:|^[^\S\n]*(?:PS [^>\n]{{0,200}}>|\${NAME}[^\S\n]*=)|[^\S\n]`[^\S\n]*$", re.IGNORECASE | re.MULTILINE
)
_COMMAND_PROMPT = re.compile(
    rf'^[^\S\n]*(?:set[ ]"?{NAME}=|@?rem[ ]|[A-Z]:\\[^<>|"\s]{{0,200}}>)|[^\S\n]\^[^\S\n]*$|%{NAME}%\\|{_KNOWN}',
    re.IGNORECASE | re.MULTILINE,
)


@dataclass(frozen=True)
class Shell:
    """How a shell's text falls into tokens, and what has a meaning between two double quotes."""

    token: re.Pattern[str]
    inside_double: re.Pattern[str]


def _shell(escape, escaped, single, double, inside, first=""):
    windows = escape == r"\^"
    variable, apart = (rf"{_DOLLAR} | {_PERCENT}", "&") if windows else (_DOLLAR, r"; | \)(?=[\s;&|)]|\Z)")
    token = rf"""{first}
    # a line goes on: with blanks after the mark, empty lines after that, and the prompt that a shell shows then
    (?P<continued> (?: {escape} | (?<!\S)[\\`^] ) [^\S\n]* (?: \n\s* (?: (?: >{{1,2}} | More\? ) [^\S\n]* (?=-) )? | \Z ) )
    | {escape} (?P<escaped> {escaped} )
    | ' (?P<single> {single} ) '
    | " (?P<double> {double} ) "
    | (?<![^\s=]) [“”„] (?P<curly> [^“”„"\n]* ) [“”]
    | (?<![^\s=]) [‘’‚] (?P<curly_single> [^‘’‚'\n]* ) [‘’]
    | (?<!\S) (?P<dash> -? [–—−]{{1,2}} ) (?=[a-z])
    | (?P<opened> [$<>]\( )
    | (?P<variable> {variable} )
    | (?P<placeholder> \{{ {NAME} \}} | < [A-Za-z] (?: [\w./-]{{0,60}} | [\w\ ./-]{{0,60}} [A-Za-z] ) > )
    | (?P<copy> \d{{0,2}} [<>]& [\d-] )
    | (?P<redirect> (?: \d{{1,2}} | [*&] )? (?: >{{1,2}} \|? | <{{1,3}} -? ) &? )
    | (?P<end> \n | && | \|[|&]? | {apart} | & )
    | (?P<blank> [^\S\n]+ )
    | (?P<nothing> [\ufeff\u200b\u2060]+ )   # has no width
    | (?P<unclosed> ['"] )
    | (?P<plain> [^\s'"\\`^$%<>|&;){{“”„‘’‚\ufeff\u200b\u2060]+ | . )"""
    return Shell(
        re.compile(token, re.VERBOSE | re.DOTALL),
        re.compile(rf"{inside} | (?P<variable> {variable} )", re.VERBOSE | re.DOTALL),
    )


BASH = _shell(
    r"\\",
    r"[^\w.]",  # a backslash before a letter is Windows': nobody escapes one
    "[^']*",
    r'(?: [^"\\] | \\. )*',
    r'\\ (?P<escaped> [$`"\\\n] ) | (?P<opened> \$\( [^)]* \)? | ` [^`]* ` )',
    r"(?P<path> (?<![^\s=]) (?: [A-Za-z]:\\ | \\\\(?=\w) ) [\w.\\~-]* ) | (?P<substituted> ` [^`\n]+ ` ) |",
)
POWERSHELL = _shell("`", ".", "(?: [^'] | '' )*", '(?: [^"`] | `. | "" )*', r'` (?P<escaped> . ) | " (?P<doubled> " )')
COMMAND_PROMPT = _shell(r"\^", ".", "[^']*", r'(?: [^"\\] | \\. )*', r'\\ (?P<escaped> " )')


def shell_of(text: str) -> Shell:
    """The shell that a text is written for, by what only that one has; bash where nothing says another.

    >>> shell_of("set DATA=pictures\\npython train.py ^\\n --rank 4") is COMMAND_PROMPT
    True
    """
    if _POWERSHELL.search(text):
        return POWERSHELL
    return COMMAND_PROMPT if _COMMAND_PROMPT.search(text) else BASH

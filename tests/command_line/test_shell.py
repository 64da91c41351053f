import shlex
import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_kit.command_line.shell import last_command

AS_BASH = [
    "run a  b\tc",
    "run 'a b' \"c d\" e\\ f ''",
    "run 'it'\"'\"'s' 'a\nb' \"a\nb\"",
    r"""run "a\"b" "a\\b" "a\nb" "a\$b" 'a\b' a\b \#c""",
    'run "a\\\nb"',
    "run a#b #c",
    "# it's\nrun a # it's",
    "A=1\nrun $A ${A} $A$A x${A}y \"$A\" '$A' \\$A",
    "A='x y'\nrun $A \"$A\" --a=$A",
    "A=''\nrun $A \"$A\" --a=$A",
    "export A=1 B=2\nC=$A$B\nrun $C",
    "A=1 B=2 run x",
    'A="it\'s"\nrun "$A"',
    "A=b=c\nrun $A",
    "run a \\\n  b \\\n\tc",
    "run $ 5$ $5a",
    "run \u00e9 \u2028 '\u00a0'",
]


@pytest.mark.skipif(shutil.which("bash") is None, reason="compared with bash itself")
@pytest.mark.parametrize("text", [text for text in AS_BASH if "$5a" not in text and "\u2028" not in text])
def test_as_bash_reads_it(text):
    code = "run() { printf '%s\\0' run \"$@\"; }\n" + text
    done = subprocess.run(["bash", "-c", code], check=True, capture_output=True, text=True)
    assert last_command(text) == done.stdout.split("\0")[:-1]


@given(st.lists(st.text()))
def test_words_that_shlex_has_quoted(words):
    assert last_command(shlex.join(["run", *words])) == ["run", *words]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("run a\nrun b\n\n# end\nA=1", ["run", "b"]),  # the last command
        ("$ run a", ["run", "a"]),
        ("  !run a", ["run", "a"]),
        ("%%bash\nrun a", ["run", "a"]),
        ("%env A=1\n!run $A", ["run", "1"]),
        ("run $A ${B} $", ["run", "$A", "${B}", "$"]),  # not set: left as it is
        ("run a \\  \n\n  b", ["run", "a", "b"]),  # blanks after the backslash, an empty line after that
        ("run a \\", ["run", "a"]),
        ("run a\\\nb", ["run", "a", "b"]),  # bash would join them, which nobody means
        ("run a\r\nrun b\\\r\n  c\r\n", ["run", "b", "c"]),
        ("run\u00a0a\u2003b", ["run", "a", "b"]),  # blanks of web pages
        ("A=1; run", ["run"]),
        ("A=$A$A\nrun $A", ["run", "$A$A"]),
    ],
)
def test_what_bash_does_not_read_so(text, words):
    assert last_command(text) == words


@pytest.mark.parametrize("text", ["run 'a", 'run "a', "run a'", 'run "a\\"', "run 'a\nb"])
def test_an_open_quotation_is_quoted(text):
    with pytest.raises(ValueError, match=r"can't be read \(No closing quotation\): ['\"]"):
        last_command(text)


@pytest.mark.parametrize("text", ["", "\n", "# run", "A=1", "export A=1", "export A"])
def test_a_text_without_a_command(text):
    with pytest.raises(ValueError, match="no command in the text"):
        last_command(text)

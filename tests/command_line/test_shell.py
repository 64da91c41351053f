import shlex
import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_kit.command_line.shell import commands, left_as_they_are


def last_command(text):
    return commands(text)[-1].words


AS_BASH = [
    "run a  b\tc",
    "run 'a b' \"c d\" e\\ f ''",
    "run 'it'\"'\"'s' 'a\nb' \"a\nb\"",
    r"""run "a\"b" "a\\b" "a\nb" "a\$b" 'a\b' \#c""",
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
    "A=1; run $A; true",
    "true; run a",
    "true && run a && true",
    "false || run a",
    "run a 2>/dev/null 2>&1 3>&1",
    "run a 3> /dev/null b 4>>/dev/null </dev/null c",
    "run a &>/dev/stdout b",
    "run a 2> >(cat) b",
    "run a | cat",
    "true | run a|cat",
    "run a & wait",
    "(true && run a b)",
    "run ${A:-b} ${A-c}\nA=1",
    "A=1\nrun ${A:-b}",
    "cat >/dev/null <<EOF\nA=1\nEOF\nrun a",
    "run a\ntrue",
    "run a; # b",
    'run \'a;b\' "c|d" e\\;f "<g> (h) & {i}"',
    "run \u00e9 \u2028 '\u00a0'",
]


@pytest.mark.skipif(shutil.which("bash") is None, reason="compared with bash itself")
@pytest.mark.parametrize("text", [text for text in AS_BASH if "$5a" not in text and "\u2028" not in text])
def test_as_bash_reads_it(text):
    code = "run() { printf '%s\\0' run \"$@\"; }\n" + text
    done = subprocess.run(["bash", "-c", code], check=True, capture_output=True, text=True)
    read = [command.words for command in commands(text) if command.words[0] == "run"]
    assert read == [done.stdout.split("\0")[:-1]]


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
        ("run a\\b", ["run", "a\\b"]),
        ("run a2 b=2 c2>log", ["run", "a2", "b=2", "c2"]),
    ],
)
def test_what_bash_does_not_read_so(text, words):
    assert last_command(text) == words


# shell, what it is written with: the words of "run", with two values


@pytest.mark.parametrize(
    "text",
    [
        "run --a=x `\n  --b 'y z'",
        "run --a=x `  \r\n\r\n  --b `\r\n 'y z'\r\n",
        "$env:A = 'x'\nrun --a=$env:A --b 'y z'",
        '$Env:A="x"; run --a=${env:A} --b "y z"',
        '$a = "x"\n& run --a=$a --b "y z"',
        "PS C:\\my work> run --a=x `\n>> --b 'y z'",
        "(venv) PS C:\\work> run --a=x --b 'y z' *> log.txt",
        'run --a=x ^\n  --b "y z"',
        'run --a=x^\r\n --b ^\r\n "y z"',
        'set A=x\nrun --a=%A% --b "y z"',
        'set "A=x"\nset B=y z\nrun --a=%A% --b "%B%"',
        'C:\\work>run --a=x ^\nMore? --b "y z"',
        "rem it's mine\n:: it's mine\nset A=x\nrun --a=%A% --b \"y z\" & echo done",
        "setenv A x\nrun --a=$A --b 'y z'",
        "set -gx A x\nrun --a=$A --b 'y z'",
        "declare -x A=x\nrun --a=$A --b 'y z'",
        "set -euo pipefail\nrun --a=x --b 'y z'",
        "$ run --a=x \\\n> --b 'y z'",
        "> run --a=x --b 'y z'",
        "% run --a=x --b 'y z'",
        "❯ run --a=x --b 'y z'",
        "In [3]: !run --a=x --b 'y z'",
        "me@host:~/my-folder$ run --a=x --b 'y z'",
        "(venv) me@host:~$ run --a=x --b 'y z'",
        "[me@host folder]$ run --a=x --b 'y z'",
        "root@0a1b:/data# run --a=x --b 'y z'",
        "run --a=\u200bx \ufeff--b 'y z'",
    ],
)
def test_other_shells_and_prompts(text):
    assert last_command(text.split(" & echo")[0]) == ["run", "--a=x", "--b", "y z"]
    assert ["run", "--a=x", "--b", "y z"] in [command.words for command in commands(text)]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("run C:\\a\\b.c", "C:\\a\\b.c"),
        ("run C:\\a\\", "C:\\a"),  # the last backslash would continue the line
        ("run 'C:\\a b\\'", "C:\\a b\\"),
        ('run "C:\\a b\\c"', "C:\\a b\\c"),
        ("run ..\\a\\.b", "..\\a\\.b"),
        ("run \\\\server\\a", "\\\\server\\a"),
        ("run C:/a", "C:/a"),
        ("run é:\\a\\été", "é:\\a\\été"),
        ('$env:A="C:\\a\\"\nrun $env:A', "C:\\a\\"),
        ("set A=C:\\a b\nrun %A%\\c", "C:\\a b\\c"),
        ("$a = 1\nrun 'it''s'", "it's"),
        ('$a = 1\nrun "a `"b`" ""c"" `$a $a"', 'a "b" "c" $a 1'),
        ('set A=1\nrun "a \\"b\\" C:\\d"', 'a "b" C:\\d'),
        ("set A=1\nrun a^&b", "a&b"),
        ("run %AB% a^b `c", "%AB% a^b `c"),  # bash's: nothing says another shell
    ],
)
def test_windows_paths_and_quotes(text, value):
    words = last_command(text)
    assert " ".join(words[1:]) == value


def test_a_path_s_last_backslash_before_another_word_stays():
    assert last_command("run C:\\a\\ --b") == ["run", "C:\\a\\", "--b"]


@pytest.mark.parametrize(
    ("text", "words", "odd"),
    [
        ("run “a b” --c=“d”", ["run", "a b", "--c=d"], "curly quotation marks"),
        ("run ‘a b’ „c“", ["run", "a b", "c"], "curly quotation marks"),
        ('run it’s "“a”"', ["run", "it’s", "“a”"], None),
        ("run –a —bc -–d", ["run", "--a", "--bc", "--d"], "a long dash"),
        ("run — a–b '—c'", ["run", "—", "a–b", "—c"], None),
        ("run a\n  --b\n  -c d", ["run", "a", "--b", "-c", "d"], "a line that starts with a flag"),
        ("run a \\\n  # --b \\\n  --c", ["run", "a", "--c"], "a line that starts with a flag"),
        ("run a; --b", ["--b"], None),
        ("run a\n- b\n--- c", ["---", "c"], None),
    ],
)
def test_what_no_shell_reads_so_is_said(text, words, odd):
    command = commands(text)[-1]
    assert command.words == words
    assert [said.startswith(odd) for said in command.odd] == [True] if odd else not command.odd


@pytest.mark.parametrize(
    ("text", "words", "said"),
    [
        ("run $A", ["$A"], ["'$A' isn't set"]),
        ('run "x$A" ${B} $A', ["x$A", "${B}", "$A"], ["'$A' isn't set", "'${B}' isn't set"]),
        ("A=$B/c\nD=1\nrun $A", ["$B/c"], ["'$B' isn't set"]),
        ("A=$B C=1\nrun $C", ["1"], []),
        ("export C=1 A=$B\nrun $A", ["$B"], ["'$B' isn't set"]),
        ("run '$A' \\$A", ["$A", "$A"], []),
        ("run ${A%.*}", ["${A%.*}"], ["'${A%.*}' isn't set"]),
        ("run a > $LOG", ["a"], []),
        ("echo $A; run", [], []),
        ("$env:A = $B\nrun $env:A $env:C", ["$B", "$env:C"], ["'$B' isn't set", "'$env:C' isn't set"]),
        ("set A=1\nrun %B% %A%", ["%B%", "1"], ["'%B%' isn't set"]),
        ("run %TEMP%/a", ["%TEMP%/a"], ["'%TEMP%' isn't set"]),
        ("run %A%\\b", ["%A%\\b"], ["'%A%' isn't set"]),
        ("run a-$(date +%F)-b", ["a-$(date +%F)-b"], ["'$(date +%F)' is a command within"]),
        ('run "$(date; true)"', ["$(date; true)"], ["'$(date; true)' is a command within"]),
        ("run $(a $(b c) d) e", ["$(a $(b c) d)", "e"], ["'$(a $(b c) d)' is a command within"]),
        ("run $(a", ["$(a"], ["'$(a' is a command within"]),
        ("run `date +%F`", ["`date +%F`"], ["'`date +%F`' is a command within"]),
        ("A=$(b c)\nrun $A", ["$(b c)"], ["'$(b c)' is a command within"]),
        ("run --a=<your folder> <B_2>", ["--a=<your folder>", "<B_2>"], ["'<your folder>' stands for", "'<B_2>' stands for"]),
        ("run {a}", ["{a}"], ["'{a}' isn't set"]),
        ("run $A $B $C $D $E", ["$A", "$B", "$C", "$D", "$E"], ["'$A' ", "'$B' ", "'$C' ", "so do 2 more"]),
    ],
)  # fmt: skip
def test_what_can_not_be_filled_in_is_named(text, words, said):
    command = commands(text)[-1]
    sentences = left_as_they_are(command.as_they_are)
    assert command.words == ["run", *words] and len(sentences) == len(said)
    assert all(sentence.startswith(start) for sentence, start in zip(sentences, said, strict=True))


def test_the_gpus_of_a_command():
    texts = [
        "run",
        "CUDA_VISIBLE_DEVICES=0,1 run",
        "$env:CUDA_VISIBLE_DEVICES = '0'\nrun",
        "%env CUDA_VISIBLE_DEVICES=3\n!run",
    ]
    assert [commands(text)[-1].gpus for text in texts] == [None, "0,1", "0", "3"]


@pytest.mark.parametrize("text", ["run 'a", 'run "a', "run a'", 'run "a\\"', "run 'a\nb"])
def test_an_open_quotation_is_quoted(text):
    with pytest.raises(ValueError, match=r"can't be read \(No closing quotation\): ['\"]"):
        last_command(text)


@pytest.mark.parametrize("text", ["", "\n", "# run", "A=1", "export A=1", "export A"])
def test_a_text_without_a_command(text):
    with pytest.raises(ValueError, match="no command in the text"):
        last_command(text)


def test_a_backslash_before_the_closing_quotation_mark_is_said():
    with pytest.raises(ValueError, match=r"No closing quotation.* is a letter of it, not its end$"):
        commands('run "C:\\a\\"')

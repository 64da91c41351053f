from lora_kit.system.text import format_table


def test_format_table():
    rows = [{"module": "a", "size": 1234567, "each": 2.5}, {"module": "long name", "size": 8, "each": None}]
    assert format_table(rows).splitlines() == [
        "module          size  each",
        "a          1,234,567  2.50",
        "long name          8",
    ]


def test_truth_values_and_texts_of_numbers_stand_left():
    rows = [{"use_8bit_adam": "True", "bytes": 12}, {"use_8bit_adam": "False", "bytes": 1}]
    assert format_table(rows).splitlines() == ["use 8bit adam  bytes", "True              12", "False              1"]

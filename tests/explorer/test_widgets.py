"""Who turned a widget, the reader or the program, also where two threads do."""

import threading

import ipywidgets
import pytest

from lora_kit.explorer.widgets import Quiet, heading_html, labelled, titled


@pytest.fixture
def watched():
    """(quiet, a slider, the values that a reader gave it)."""
    quiet, slider, values = Quiet(), ipywidgets.IntSlider(value=0), []
    slider.observe(quiet.hears(lambda change: values.append(change["new"])), "value")
    return quiet, slider, values


def test_only_the_reader_is_heard(watched):
    quiet, slider, values = watched
    slider.value = 1
    with quiet:
        slider.value = 2
        with quiet:
            slider.value = 3
        slider.value = 4
    slider.value = 5
    assert values == [1, 5]


def test_what_an_observer_changes_itself_is_the_program_s_only_within_quiet():
    quiet, first, second, values = Quiet(), ipywidgets.IntSlider(), ipywidgets.IntSlider(), []
    second.observe(quiet.hears(lambda change: values.append(change["new"])), "value")

    def follow(change):
        with quiet:
            second.value = change["new"]

    first.observe(quiet.hears(follow), "value")
    first.value = 7
    assert (second.value, values) == (7, [])


def test_an_error_in_quiet_ends_it(watched):
    quiet, slider, values = watched
    with pytest.raises(ZeroDivisionError), quiet:
        raise ZeroDivisionError
    slider.value = 1
    assert values == [1]


def test_a_turn_while_another_thread_paints_is_not_lost(watched):
    quiet, slider, values = watched
    painting, turned, over = threading.Event(), threading.Event(), threading.Event()

    def paint():
        with quiet:
            painting.set()
            turned.wait()
            assert values == []  # it waits
        over.set()

    def turn():
        turned.set()  # the observer is called next, and can't be before the painting is over
        slider.value = 9

    threads = [threading.Thread(target=paint)]
    threads[0].start()
    painting.wait()
    threads.append(threading.Thread(target=turn))
    threads[1].start()
    for thread in threads:
        thread.join()
    assert values == [9] and over.is_set()


def test_looks():
    widget = labelled(ipywidgets.Checkbox, "log", "A sentence.", indent=False)
    assert (widget.description, widget.tooltip, widget.indent) == ("log", "A sentence.", False)
    part = titled("Start", widget)
    assert (
        part.children[0].value == heading_html("Start")
        and ">Start<" in heading_html("Start")
        and part.children[1] is widget
    )

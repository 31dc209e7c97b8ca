"""Calling a user's function by its name: what is found, what is passed, and what every mistake is called."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from shufflectl.errors import FactoryError, UsageError
from shufflectl.models.factory import Factory, build, is_factory, refuse_path

CODE = """
import sys
from torch import nn

LAYER = nn.Conv2d(3, 4, 1)
NUMBER = 5
SEEN = {}

class Net(nn.Sequential):
    def __init__(self, width=4):
        super().__init__(nn.Conv2d(3, width, 1))

def make(width: int = 4, *, label="none"):
    SEEN.update(width=width, label=label)
    return nn.Conv2d(3, 4, 1)

def raises():
    raise ValueError("no weights here\\nand a second line")

def leaves():
    sys.exit(3)

def number():
    return 7

def prints():
    print("hello")
    return nn.Conv2d(3, 4, 1)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A current folder with a user's code."""
    (tmp_path / "mine_user").mkdir()
    (tmp_path / "mine_user" / "net.py").write_text(CODE)
    (tmp_path / "mine_user" / "broken.py").write_text("import a_package_that_is_missing\n")
    (tmp_path / "mine_user" / "wrong.py").write_text("def f(:\n")
    (tmp_path / "mine_user" / "ends.py").write_text("raise SystemExit('usage: ends')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in [n for n in sys.modules if n.partition(".")[0] == "mine_user"]:
        del sys.modules[name]


def call(name: str, *arguments: str) -> nn.Module:
    return build(Factory.parse(name, arguments=arguments))


@pytest.mark.parametrize("text", ["a:b", "a.b:c", "a_1.b2:C.d", "répertoire:été"])
def test_what_is_a_factory(text: str) -> None:
    assert is_factory(text)


@pytest.mark.parametrize(
    "text",
    ["", "a", "a:", ":b", "a.b", "a/b.py:c", "C:\\x.onnx", "random:0", "a:b:c", "a b:c", ".a:b", "a:b()"],
)
def test_what_is_none(text: str) -> None:
    assert not is_factory(text)


class TestFound:
    def test_a_function_in_the_current_folder(self) -> None:
        assert isinstance(call("mine_user.net:make"), nn.Conv2d)

    def test_a_class(self) -> None:
        assert (6, 3, 1, 1) == call("mine_user.net:Net", "width=6").state_dict()["0.weight"].shape

    def test_a_network_itself(self) -> None:
        assert call("mine_user.net:LAYER") is sys.modules["mine_user.net"].LAYER

    def test_a_network_itself_takes_no_arguments(self) -> None:
        with pytest.raises(UsageError, match="is a network already"):
            call("mine_user.net:LAYER", "width=2")

    def test_its_own_initialisation_is_the_same_in_every_call(self) -> None:
        before = torch.get_rng_state()
        first, second = call("mine_user.net:make"), call("mine_user.net:make")
        assert torch.equal(first.state_dict()["weight"], second.state_dict()["weight"])
        assert torch.equal(before, torch.get_rng_state())

    def test_what_it_prints_does_not_mix_with_results(self, capsys: pytest.CaptureFixture[str]) -> None:
        call("mine_user.net:prints")
        assert ("", "hello\n") == capsys.readouterr()


class TestArguments:
    @pytest.mark.parametrize(
        ("text", "value"),
        [
            ("3", 3),
            ("0.5", 0.5),
            ("(1, 2)", (1, 2)),
            ("None", None),
            ("True", True),
            ("'3'", "3"),
            ("resnet", "resnet"),
            ("a=b", "a=b"),
            ("", ""),
            ("__import__('os')", "__import__('os')"),
        ],
    )
    def test_literals_are_values_and_all_else_is_text(self, text: str, value: Any) -> None:
        call("mine_user.net:make", f"label={text}")
        assert value == sys.modules["mine_user.net"].SEEN["label"]

    @pytest.mark.parametrize("text", ["width", "=3", "2x=3", "a b=3"])
    def test_another_form_is_refused(self, text: str) -> None:
        with pytest.raises(UsageError, match="not of the form key=value"):
            call("mine_user.net:make", text)

    def test_twice_is_refused(self) -> None:
        with pytest.raises(UsageError, match="'width' is given twice"):
            call("mine_user.net:make", "width=1", "width=2")

    def test_what_the_function_does_not_take_names_what_it_takes(self) -> None:
        with pytest.raises(UsageError, match="'wdith'") as caught:
            call("mine_user.net:make", "wdith=1")
        assert "width" in caught.value.hint


class TestInputs:
    def test_names_and_shapes_keep_their_order(self) -> None:
        found = Factory.parse("a:b", inputs=["image=1x3x8x16", "extra=1x6"], outputs=["x,y", "z"])
        assert {"image": (1, 3, 8, 16), "extra": (1, 6)} == found.inputs
        assert ("x", "y", "z") == found.outputs

    @pytest.mark.parametrize(
        "text",
        [
            "image",
            "image=",
            "1x3x8x8",
            "image=1x3xHx8",
            "image=-1x3",
            "i m=1x3",
            "a=1x0x3",
            "a=99999x99999x99",
            "a=1,3",
        ],
    )
    def test_another_form_is_refused(self, text: str) -> None:
        with pytest.raises(UsageError):
            Factory.parse("a:b", inputs=[text])


class TestMistakes:
    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("absent_user_package:make", "no module named 'absent_user_package'"),
            ("mine_user.absent:make", "no module named 'mine_user.absent'"),
            ("mine_user.net:mkae", "has no attribute 'mkae'"),
            ("mine_user.net:NUMBER", "cannot be called"),
        ],
    )
    def test_what_is_not_there_is_usage(self, name: str, words: str) -> None:
        with pytest.raises(UsageError, match=words) as caught:
            call(name)
        assert 2 == caught.value.exit_code
        assert caught.value.hint

    def test_the_nearest_name_is_suggested(self) -> None:
        with pytest.raises(UsageError) as caught:
            call("mine_user.net:mkae")
        assert "'make'" in caught.value.hint

    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("mine_user.broken:make", "ModuleNotFoundError: No module named 'a_package_that_is_missing'"),
            ("mine_user.wrong:make", "SyntaxError"),
            ("mine_user.ends:make", "SystemExit: usage: ends"),
            ("mine_user.net:raises", "raised ValueError: no weights here$"),
            ("mine_user.net:leaves", "raised SystemExit: 3"),
            ("mine_user.net:number", "type int, not a torch.nn.Module"),
        ],
    )
    def test_what_the_users_code_does_wrong_is_bad_input(self, name: str, words: str) -> None:
        with pytest.raises(FactoryError, match=words) as caught:
            call(name)
        assert 3 == caught.value.exit_code
        assert "\n" not in caught.value.message

    def test_where_it_was_raised_is_said(self) -> None:
        with pytest.raises(FactoryError) as caught:
            call("mine_user.net:raises")
        assert "raised in net.py, line 18" in caught.value.hint

    def test_a_path_of_code_is_told_its_module(self) -> None:
        with pytest.raises(UsageError) as caught:
            refuse_path("mine_user/net.py:make")
        assert "mine_user.net:make" in caught.value.hint

    def test_the_safe_path_of_python_is_kept(self) -> None:
        code = "from shufflectl.models.factory import Factory, build\nbuild(Factory('mine_user.net:make'))"
        argv = [sys.executable, "-P", "-c", code]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        assert "there is no module named 'mine_user'" in done.stderr

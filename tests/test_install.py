"""dsnb outside its repository: the command line, and a wheel in a fresh environment."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import dsnb
from dsnb import __main__ as command
from dsnb import plotting

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("name", ["figures"])
def test_notebook_commands_need_the_repository(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "NOTEBOOKS", tmp_path / "notebooks")
    assert command.main([name]) == 2
    assert "Clone the repository" in capsys.readouterr().err


def test_only_some_commands_redraw_the_committed_figures(monkeypatch):
    monkeypatch.setenv("DSNB_FIGURES", "")  # so that what the command sets is undone, too
    monkeypatch.delenv("DSNB_FIGURES")
    saved_in = []
    for name in command.COMMANDS:
        monkeypatch.setitem(
            command.COMMANDS, name, (lambda argv: saved_in.append(plotting.figures_folder()) or 0, "")
        )
    for name in ("run", "demo", "figures"):
        assert command.main([name]) == 0
    assert saved_in == [ROOT / "runs" / "figures"] * 2 + [ROOT / "figures"]


def test_an_unknown_command_is_named(capsys):
    assert command.main(["blend"]) == 2
    assert "unknown command 'blend'" in capsys.readouterr().err


def test_a_demo_that_cannot_be_drawn_says_why(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert command.main(["demo", "--steps", "1001"]) == 1
    assert "error: steps must be" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_stopped_command_is_a_sentence(monkeypatch, capsys):
    def stop(argv):
        raise KeyboardInterrupt

    monkeypatch.setitem(command.COMMANDS, "demo", (stop, ""))
    assert command.main(["demo"]) == 130 and capsys.readouterr().err == "stopped\n"


def test_the_bundled_model_blends_without_network(monkeypatch):
    def refuse(*address, **options):
        raise AssertionError(f"a connection to {address} was asked for")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    model, image = dsnb.load(device="cpu"), dsnb.prompts.pictures()[0]
    trajectory = dsnb.invert(model, dsnb.read_image(image.file, model), image.caption, steps=2)
    styled = [dsnb.prompts.prompt(style, image.caption) for style in dsnb.prompts.names()[:2]]
    assert dsnb.blend(model, trajectory, styled, dsnb.masks.linear()).shape[1:] == (3, 128, 128)


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Folder of the programs of an environment that holds dsnb's wheel, with the dependencies of this one."""
    folder = tmp_path_factory.mktemp("install")
    for name in ("dsnb", "data"):
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "-w", folder, folder / "source"]
    subprocess.run([*pip, *build], check=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    python = folder / "venv" / "bin" / "python"
    (wheel,) = folder.glob("dsnb-*.whl")
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([*pip, "--python", python, "install", "--no-deps", wheel], check=True, env=clean)
    (site,) = (folder / "venv").glob("lib/python*/site-packages")
    # After the installation, because pip would take a dsnb that it sees there for installed.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return python.parent


def run(command, cwd, environment):
    options = {"cwd": cwd, "env": environment, "check": True, "text": True}
    return subprocess.run(command, stdout=subprocess.PIPE, **options).stdout.split()


@pytest.mark.slow
def test_a_wheel_draws_into_the_current_folder_and_nowhere_else(installed, tmp_path):
    here, home = tmp_path / "here", tmp_path / "home"
    here.mkdir()
    home.mkdir()
    environment = {"PATH": str(installed), "HOME": str(home), "OMP_WAIT_POLICY": "PASSIVE"}
    code = "import dsnb; model = dsnb.load(); print(dsnb.__file__, model.name, len(dsnb.prompts.pictures()))"
    file, model, images = run([installed / "python", "-c", code], here, environment)
    assert Path(file).is_relative_to(installed.parent) and model == "drawn-world" and int(images) > 10
    assert (Path(file).parent / "lab" / "training" / "card.md").is_file()

    drawn = [Path(line) for line in run([installed / "dsnb", "demo", "--steps", "2"], here, environment)]
    assert sorted(drawn) == sorted(here.resolve().iterdir()) and len(drawn) == 2
    assert not (Path(file).parents[1] / "figures").exists()

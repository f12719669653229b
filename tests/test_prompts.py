import pytest

from dsnb import images, prompts

MINECRAFT = (
    "A Minecraft-inspired rendering of a bear, featuring distinct pixelated textures, blocky 3D cube structures, "
    "limited color palette with no gradients, sharp right angles and perfect squares, characteristic voxel-based "
    "terrain with visible block edges."
)


def test_templates_and_pairs_are_the_papers():
    assert prompts.prompt("minecraft", "a bear") == MINECRAFT
    assert prompts.names() == ["minecraft", "vangogh", "mosaic", "warhol"]
    assert prompts.pairs() == [("minecraft", "vangogh"), ("mosaic", "warhol")]
    assert prompts.title("vangogh") == "Van Gogh"


def test_the_one_prompt_baseline_names_both_sides():
    text = prompts.one_prompt(("minecraft", "vangogh"), "a bear")
    assert (
        text
        == "A Minecraft-inspired rendering on the left and a Van Gogh-style painting on the right of a bear"
    )


def test_a_style_by_name_by_template_or_as_a_whole_prompt():
    own = "a sketch of a bear, with mosaic tiles"
    assert prompts.prompt(own, "a dog") == own
    assert prompts.prompt("[prompt]_in_ink", "a bear") == "a bear_in_ink"
    assert prompts.prompt("ink of [Prompt]", r"a \1 bear") == r"ink of a \1 bear"
    for spelling in ("Van Gogh", "VANGOGH", " van-gogh ", "vangogh"):
        assert prompts.prompt(spelling, "a bear") == prompts.prompt("vangogh", "a bear")
        assert prompts.known(spelling) == "vangogh"
    assert prompts.known(own) is None
    assert prompts.one_prompt(["Van Gogh", "Mosaic"], "x") == prompts.one_prompt(["vangogh", "mosaic"], "x")


def test_there_are_enough_pictures_and_all_can_be_read():
    pictures = prompts.pictures()
    assert len(pictures) >= 12 and len({p.name for p in pictures}) == len(pictures)
    for picture in pictures:
        assert picture.caption and picture.source
        assert images.read_image(picture.file, size=64).shape == (1, 3, 64, 64)
    assert prompts.picture(pictures[3].name) == pictures[3]


def test_unknown_names_get_the_near_one():
    with pytest.raises(ValueError, match="did you mean 'Andy Warhol Pop'"):
        prompts.prompt("Andy Warhol", "a bear")
    for misspelt in ("vangoh", "Van Goh"):
        with pytest.raises(ValueError, match="did you mean 'vangogh'"):
            prompts.prompt(misspelt, "a bear")
    with pytest.raises(ValueError, match="did you mean 'bear_grass'"):
        prompts.picture("bear_gras")


def test_an_image_of_ones_own_needs_its_caption(tmp_path):
    file = tmp_path / "mine.png"
    file.touch()
    with pytest.raises(ValueError, match="caption is empty; say what .*mine.png"):
        prompts.picture(file)
    mine = prompts.picture(str(file), "a dog")
    assert (mine.file, mine.caption) == (file, "a dog")
    assert prompts.picture("bear_grass", "a pet").caption == "a pet"

"""What --help says: all of it, what has a word, and how it is laid out."""

import pytest
from absl import flags

from mtsft.config import default, validate
from mtsft.config_files import with_texts
from mtsft.config_keys import config_keys
from mtsft.errors import InputError
from mtsft.help_text import COMMON, Entry, flag_entry, found_text, help_text, key_entries

FLAGS = [
    flag_entry("workdir", None, "Where the run is."),
    flag_entry("format", "text", "How."),
    flag_entry("numeric", False, "Also check."),
]


def test_all_is_there_a_line_each():
    lines = help_text("About.\n", FLAGS, True).splitlines()
    assert lines[:6] == [
        "About.",
        "",
        "Flags",
        "  --workdir=...                     Where the run is.",
        "  --format=text                     How.",
        "  --numeric                         Also check.",
    ]
    assert '  data.weigh_per="token"            ' in "\n".join(lines)
    keys = [
        line.split("=")[0].strip()
        for line in lines[8:]
        if "=" in line and line.startswith("  ") and not line.startswith("  --")
    ]
    assert keys == list(config_keys())
    assert (
        lines.index("lora")
        < lines.index("train")
        < lines.index("  train.seed=0" + " " * 22 + config_keys()["train.seed"].meaning)
    )
    assert "data.train" not in help_text("About.", FLAGS, False)


def test_it_fits_a_terminal():
    text = help_text("About.", FLAGS, True, width=84)
    assert max(map(len, text.splitlines())) <= 84
    words = " ".join(text.split())
    assert all(" ".join(key.meaning.split()) in words for key in config_keys().values())
    assert '\n  parallel.compilation_cache="~/.cache/mtsft/compiled"\n' + " " * 36 + "compiled programs" in text


def test_a_word_is_found_in_names_and_meanings():
    entries = [*FLAGS, Entry("train.b_x=1", "of Things"), Entry("lora.rank=0", "of adapters; --numeric")]
    assert (
        found_text("thing", entries)
        == "Config keys, set as --config.KEY=VALUE\n\ntrain\n  train.b_x=1                       of Things"
    )
    both = found_text("NUMERIC", entries).splitlines()
    assert both == [
        "Flags",
        "  --numeric                         Also check.",
        "",
        "Config keys, set as --config.KEY=VALUE",
        "",
        "lora",
        "  lora.rank=0                       of adapters; --numeric",
    ]
    assert found_text("b x things", entries).endswith("train.b_x=1                       of Things")


def test_a_word_that_nothing_has_is_told():
    with pytest.raises(
        InputError, match=r"^--help=zzz: no flag and no config key has that in .*; --help shows all of them$"
    ):
        found_text("zzz", key_entries())
    with pytest.raises(InputError, match=r"; did you mean --help=learning_rate\?$"):
        found_text("lerning_rate", key_entries())


def test_the_overrides_that_most_people_want_are_keys_with_values_that_fit():
    overrides = dict(override.split("=", 1) for line in COMMON for override in line)
    config = with_texts(default(), overrides)
    validate(config)
    assert config.parallel.mesh == "fsdp=-1"
    text = help_text("A door.", [], has_config=True)
    assert all(f"--config.{key}={value}" in text for key, value in overrides.items())
    assert "Overrides" not in help_text("A door.", [], has_config=False)


def test_a_flag_that_is_a_list_shows_its_default_as_it_is_written():
    assert flag_entry("seeds", ["0", "1"], "Seeds.").label == "--seeds=0,1"


def test_a_flag_that_may_be_given_again_says_so_in_a_line():
    defined = flags.FlagValues()
    flags.DEFINE_multi_string("base", [], "Where it is.", defined)
    flag = defined["base"]
    assert flag_entry("base", flag.default, flag.help) == ("--base=...", "Where it is. May be given again.")

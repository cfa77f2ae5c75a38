"""Lists of prompts: what they may say, and refusals that name the row."""

from pathlib import Path

import pytest

from mmdit.conditioning import Labels
from mmdit.errors import Refused
from mmdit.pipelines.prompt_list import Entry, read_prompt_list

LABELS = Labels(["coat", "dress"])


def read(path: Path, text: str) -> list[Entry]:
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    return read_prompt_list(path, labels=LABELS, has_text=True, negative="grey")


def test_the_three_kinds_of_list(tmp_path: Path) -> None:
    text, table, lines = (tmp_path / f"list.{suffix}" for suffix in ("txt", "csv", "jsonl"))
    assert [entry.prompt for entry in read(text, "\ufeffa red coat\n\n  a dress, blue  \r\n")] == [
        "a red coat",
        "a dress, blue",
    ]
    # What Unicode takes for the end of a line is none; it comes with text copied from elsewhere.
    for other in ("\u2028", "\x85", "\x0c"):
        assert len(read(text, f"a red{other}coat\r\na hat\rblue")) == 3
        assert len(read(table, f"prompt\na red{other}coat\r\na hat\n")) == 2
    said = Entry(f"{table}, line 2", "a coat, red", "dress", "blur", 7, "x/a.gif", 5, (32, 16), 1.5)
    header = "prompt,label,negative,seed,out,frames,size,guidance\n"
    rows = read(table, f'{header}"a coat, red",1,blur,7,x/a.gif,5,32x16,1.5\nplain,,,,,,,\n')
    assert rows == [said, Entry(f"{table}, line 3", "plain", negative="grey")]
    row = '{"prompt": "a coat, red", "label": "dress", "negative": "blur", "seed": 7, "out": "x/a.gif", "frames": 5, '
    (found,) = read(lines, row + '"size": "32x16", "guidance": 1.5}\n')
    assert found == Entry(f"{lines}, line 1", *list(vars(said).values())[1:])


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.csv", "prompt,label\nred,coat\nblue,cot\n", "a.csv, line 3: unknown label, got 'cot'"),
        ("a.csv", "prompt,label\nred\n", "a row of another length than the header, in .*line 2"),
        ("a.csv", "prompt,sed\nred,1\n", "unknown column, .*did you mean seed"),
        ("a.csv", "prompt,prompt\nred,1\n", "a column twice"),
        ("a.csv", "prompt,seed\nred,many\n", "the seed is no number, in .*line 2, got 'many'"),
        ("a.csv", "prompt,seed\nred,-1\n", "line 2: the seed is out of range"),
        ("a.csv", "prompt,guidance\nred,nan\n", "line 2: the guidance scale"),
        ("a.csv", "prompt,size\nred,32\n", "not a size, in .*line 2"),
        ("a.csv", "prompt,out\nred,../a.mp4\n", "bad file name, in .*line 2"),
        ("a.csv", "prompt,out\nred,/a.mp4\n", "bad file name"),
        ("a.csv", "prompt,out\nred,a.avi\n", "this format is not written, in .*line 2"),
        ("a.csv", "prompt,out\nred,a.mp4\nblue,a.mp4\n", "the same file twice, in .*line 2 and 3"),
        ("a.csv", "prompt,label\n,\n", "line 2: nothing to generate from"),
        ("a.jsonl", '{"prompt": "red"}\n{"prompt": 3}\n', "a prompt is not text, in .*line 2, got 3"),
        ("a.jsonl", '{"prompt": "red"}\nred\n', "not JSON, in .*line 2"),
        ("a.jsonl", '{"prompt": "red", "frames": 2.5}\n', "the frames is no number, in .*line 1"),
        ("a.txt", "red\nbl\0ue\n", "NUL character, in .*line 2"),
        ("a.txt", "red\nbl\udcffue\n", "not UTF-8 .*, in .*line 2"),
        ("a.txt", "\n", "the list of prompts is empty"),
        ("a.yaml", "red\n", "not a list of prompts"),
    ],
)  # fmt: skip
def test_a_bad_row_is_named(name: str, text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(Refused, match=said):
        read(tmp_path / name, text)


def test_a_list_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="cannot be read"):
        read_prompt_list(tmp_path / "none.txt", labels=LABELS, has_text=True)

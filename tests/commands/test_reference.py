"""The real images of a command: those of the source's run, and what overrides them; output that is input again."""

import json
import shutil
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

import latentia
from latentia import compare, evaluate
from latentia.commands import reference
from latentia.commands.main import main
from latentia.commands.sources import open_source
from latentia.data import ImageData, load_images
from latentia.data.order import in_proportion
from latentia.errors import DataError, MissingSplitError, UsageError
from latentia.runs.arguments import DataArguments, RunArguments
from latentia.runs.classes import classes_of
from latentia.runs.command_line import flat_values
from latentia.runs.pairs import PairArguments

FAST = {"metrics": ["kid"], "extractor": "digits"}


@pytest.fixture(scope="module")
def digits():
    return load_images("digits")


@pytest.fixture
def photos(tmp_path):
    """A folder of colour images of several sizes, one of which is damaged, in two class folders."""
    generator = np.random.default_rng(0)
    for i in range(120):
        size = (12 + i % 5, 10 + i % 3, 3)
        path = tmp_path / "photos" / ("a" if i < 90 else "b") / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, size, np.uint8)).save(path)
    (tmp_path / "photos" / "a" / "broken.png").write_bytes(b"no image")
    return tmp_path / "photos"


def run_of(folder, network=None, **data):
    """The folder of a finished run: a pipeline, and the flags that it was trained with."""
    torch.manual_seed(0)
    network = latentia.VAE(sample_size=8, in_channels=1, latent_dim=2) if network is None else network
    latentia.VAEPipeline(network).save_pretrained(folder)
    flags = flat_values(RunArguments(data=DataArguments(**data)))
    (folder / "training_config.json").write_text(json.dumps(flags))
    return folder


# ---------------------------------------------------------------------------------------------- the data of a run


def test_held_out_images_are_said_to_be_seen_or_unseen(photos, tmp_path):
    """Only a split that is not there is passed over; one that cannot be read is an error."""
    told = {"resolution": 8, "on_bad_image": "skip"}
    assert reference.find_reference(photos, [], told).held_out(4)[2] == "training images"
    (tmp_path / "both").mkdir()
    photos.rename(tmp_path / "both" / "train")
    shutil.copytree(tmp_path / "both" / "train", tmp_path / "both" / "test")
    assert reference.find_reference(tmp_path / "both", [], told).held_out(4)[2] == "test images"
    for path in (tmp_path / "both" / "test").rglob("*.png"):
        path.write_bytes(b"no image")
    with pytest.raises(DataError, match="2 of the first 2 images are bad"):
        reference.find_reference(tmp_path / "both", [], {"resolution": 8, "on_bad_image": "skip"}).held_out(4)


def test_one_parquet_file_is_one_split(tmp_path):
    """A file that is named is read as training images whatever its name, and as others only if it is named so."""
    digits = load_images("digits")
    rows = [{"image": Image.fromarray(image[0].numpy())} for image in digits.images[:8]]
    for name in ("all.parquet", "test.parquet"):
        datasets.Dataset.from_list(rows).to_parquet(tmp_path / name)
        assert len(load_images(tmp_path / name)) == 8
    assert len(load_images(tmp_path / "test.parquet", split="test")) == 8
    with pytest.raises(MissingSplitError, match=r'all.parquet has no split "test"'):
        load_images(tmp_path / "all.parquet", split="test")
    assert reference.find_reference(tmp_path / "all.parquet", [], {}).held_out(4)[2] == "training images"


def test_commands_read_the_data_as_the_run_did(photos, tmp_path, capsys):
    told = {"resolution": 8, "channels": 1, "on_bad_image": "skip", "train_data_dir": str(photos)}
    run = run_of(tmp_path / "run", **told)
    found = reference.find_reference(None, [run], {}).images
    assert found.shape == (1, 8, 8) and len(found) == 120 and found.label_names == ["a", "b"]
    base = ["--output_dir", str(tmp_path / "out"), "--overwrite"]
    main(["evaluate", str(run), "--extractor", "digits", "--metrics", "kid", *base])
    assert "n = 60" in capsys.readouterr().out
    for words in (["compare", str(run), "pca", "--extractor", "digits", "--metrics", "kid"], ["embed", str(run)]):
        main([*words, "--output_dir", str(tmp_path / words[0])])
    main(["sheet", str(run), "--trials", "4", "--output_dir", str(tmp_path / "sheet")])
    assert json.loads((tmp_path / "embed" / "embedding.json").read_text())["shape"] == [120, 2]


def test_a_run_of_others_starts_and_writes_nothing_here(photos, tmp_path):
    """Its folder may come from anyone, with a configuration that asks for 900 processes and files elsewhere."""
    folder = run_of(tmp_path / "cloned", train_data_dir=str(photos), cache_dir="/etc/x", dataloader_num_workers=900)
    found = reference.run_arguments(folder)
    assert (found.cache_dir, found.dataloader_num_workers, found.train_data_dir) == (None, 0, str(photos))


@pytest.mark.parametrize("name", ["dataset_name", "train_data_dir"])
def test_no_name_is_not_the_current_folder(name):
    with pytest.raises(UsageError, match="must not be empty"):
        reference.load_data(DataArguments(**{name: ""}))


def test_flags_override_the_run_and_are_all_there(photos, tmp_path, capsys):
    run = run_of(tmp_path / "run", resolution=16, channels=1, on_bad_image="skip", train_data_dir=str(photos))
    assert reference.find_reference(None, [run], {"resolution": 8}).images.shape == (1, 8, 8)
    words = ["evaluate", str(run), "--resolution", "8", "--max_train_samples", "104", "--no_center_crop"]
    main([*words, "--extractor", "digits", "--metrics", "kid", "--output_dir", str(tmp_path / "out")])
    assert "of 103 real images" in capsys.readouterr().out
    known = set(reference.data_options()) | {"dataset_name", "train_data_dir"}
    assert known == {*vars(DataArguments()), *vars(PairArguments())} and all(
        option.help for option in reference.data_options().values()
    )
    with pytest.raises(UsageError, match=r'reolution must be left out.*Did you mean "resolution"'):
        evaluate(run, reolution=8)
    with pytest.raises(UsageError, match="resolution must be left out where data are images already"):
        evaluate("pca", load_images("digits"), resolution=8)


def test_other_data_keeps_what_the_images_of_the_model_are(photos, tmp_path):
    run = run_of(tmp_path / "run", resolution=8, channels=1, label_column="kind", dataset_name="digits", split="test")
    other = reference.find_reference(str(photos), [run], {"on_bad_image": "skip"})
    assert other.images.shape == (1, 8, 8)
    assert (other.arguments.label_column, other.arguments.split) == (None, "train")  # of the run's own data
    own = reference.find_reference("digits", [run], {"split": "train", "label_column": None})
    assert own.arguments.resolution == 8 and own.images.shape == (1, 8, 8)


def test_without_data_the_runs_must_agree(photos, tmp_path):
    one = run_of(tmp_path / "one", dataset_name="digits")
    two = run_of(tmp_path / "two", dataset_name="digits", random_flip=True, cache_dir=str(tmp_path / "cache"))
    three = run_of(tmp_path / "three", dataset_name="emoji")
    assert reference.find_reference(None, ["pca", one, two], {}).images.shape == (1, 8, 8)
    with pytest.raises(UsageError, match=r"one has dataset_name digits and .*three has emoji"):
        compare([one, three, "pca"])
    with pytest.raises(UsageError, match="data is missing: no source is the folder of a run"):
        evaluate("pca")
    (tmp_path / "gone").mkdir()
    gone = run_of(tmp_path / "moved", train_data_dir=str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"nowhere does not exist.*moved was trained on it"):
        evaluate(gone)
    with pytest.raises(UsageError, match="streaming must be off"):
        evaluate(run_of(tmp_path / "stream", dataset_name="digits", streaming=True))
    (gone / "training_config.json").write_text('{"resolution": "big"}')
    with pytest.raises(UsageError, match="resolution must be of type int"):
        evaluate(gone)


# ------------------------------------------------------------------------------------------------ classes, captions


def test_classes_are_asked_for_as_often_as_they_occur(digits):
    rows = torch.cat([(digits.labels == 0).nonzero()[:80], (digits.labels == 1).nonzero()[:9]]).flatten()
    real = ImageData(digits.images[rows], digits.labels[rows], ["zero", "one"])

    class Model:  # whose classes have another order
        config = SimpleNamespace(label_names={"0": "one", "1": "zero"})

    asked, labels, notes = classes_of(Model, 2, real)
    assert not notes and torch.tensor(asked(0, 40)).bincount().tolist() == [4, 36]
    assert [1 - i for i in labels(0, 40)] == asked(0, 40)
    whole = in_proportion([0.7, 0.2, 0.1])
    assert whole(3, 20) == in_proportion([0.7, 0.2, 0.1])(0, 20)[3:]
    _, none, notes = classes_of(Model, 2, ImageData(digits.images[rows], digits.labels[rows], ["a", "b"]))
    assert none is None and "asked for in turn, as the data has the classes a, b" in notes[0]


# ------------------------------------------------------------------------------------------- output that is input


def test_what_generate_writes_can_be_evaluated(digits, tmp_path, capsys):
    run = run_of(tmp_path / "run", dataset_name="digits")
    out = tmp_path / "made"
    main(["generate", str(run), "--num_images", "20", "--output_dir", str(out)])
    assert open_source(str(out), digits).count == 20 and (tmp_path / "made_sheet.png").is_file()
    main(["evaluate", str(out), "--data", "digits", "--metrics", "kid", "--output_dir", str(tmp_path / "numbers")])
    assert "n = 20" in capsys.readouterr().out
    for words in (["generate", str(run)], ["evaluate", str(run)], ["embed", "pca", "--data", "digits"]):
        with pytest.raises(SystemExit):
            main([*words, "--output_dir", str(out)])
        assert "must be empty" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["evaluate", str(run), "--output_dir", str(out), "--overwrite"])
    assert "holds results of generate" in capsys.readouterr().err and len([*out.glob("0*.png")]) == 20
    main(["generate", str(run), "--num_images", "2", "--output_dir", str(out), "--overwrite"])
    assert len([*out.glob("0*.png")]) == 2
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "thesis.txt").write_text("")
    with pytest.raises(UsageError, match="holds files that no command wrote"):
        evaluate("pca", digits, n=20, **FAST).save(tmp_path / "own", overwrite=True)


def test_arrays_of_the_usual_tools_are_read(digits, tmp_path):
    x = digits.images[:30]
    wide = x.expand(-1, 3, -1, -1).numpy()
    np.savez(tmp_path / "guided.npz", arr_0=wide.transpose(0, 2, 3, 1), arr_1=digits.labels[:30].numpy())
    np.save(tmp_path / "first.npy", wide)
    real = ImageData(torch.from_numpy(wide.copy()))
    for name in ("guided.npz", "first.npy"):
        opened = open_source(str(tmp_path / name), real)
        assert torch.equal(opened.draw(3, 9), real.images[3:9]), name
    assert "arr_1 of guided.npz was not used" in open_source(str(tmp_path / "guided.npz"), real).notes[0]
    np.savez(tmp_path / "odd.npz", arr_0=wide, arr_1=np.zeros(7))
    with pytest.raises(DataError, match=r"arr_1 is neither. It holds arr_0 \(30, 3, 8, 8\), arr_1 \(7,\)"):
        open_source(str(tmp_path / "odd.npz"), real)
    np.save(tmp_path / "last.npy", np.zeros((5, 8, 3, 8), np.uint8))
    with pytest.raises(UsageError, match=r"\(N, 8, 8, 3\) or \(N, 3, 8, 8\).*last has \(5, 8, 3, 8\)"):
        open_source(str(tmp_path / "last.npy"), real)

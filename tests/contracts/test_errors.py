"""Names of arguments in errors: Python's in the library, with dashes on the command line."""

import pytest

from latentia.errors import add_dashes

FLAGS = ["n", "seed", "split", "data", "num_images", "num", "output_dir", "train_batch_size"]


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("n must be at least 1; got 0.", "--n must be at least 1; got 0."),
        ("num_images must be at least 1; got 0.", "--num_images must be at least 1; got 0."),
        ("Lower num_images, or raise train_batch_size.", "Lower --num_images, or raise --train_batch_size."),
        ("`split` and `seed` must agree.", "--split and --seed must agree."),
        ("The split has no data of that seed.", "The split has no data of that seed."),
        ("numbers must be finite.", "numbers must be finite."),
        ("num_images_more is nothing known.", "num_images_more is nothing known."),
        ("--num_images must be at least 1.", "--num_images must be at least 1."),
        ('The column "num_images" is missing.', 'The column "num_images" is missing.'),
        ("/tmp/output_dir/run and output_dir/run.json exist.", "/tmp/output_dir/run and output_dir/run.json exist."),
        ("data", "data"),
        ("seed: it is missing.", "seed: it is missing."),
        ("num_images=3 must divide 4; got num_images=3.", "--num_images 3 must divide 4; got --num_images 3."),
        ('Give split="" or split="a[:2]".', "Give --split '' or --split 'a[:2]'."),
        ("Give num=True, seed=False, or data=None.", "Give --num, --no_seed, or data=None."),
        ('The mode="reduce" of torch.data=3 stays.', 'The mode="reduce" of torch.data=3 stays.'),
    ],
)
def test_only_names_of_arguments_get_dashes(message, said):
    assert add_dashes(message, FLAGS) == said
    assert add_dashes(said, FLAGS) == said
    assert add_dashes(message, []) == message

"""`latentia bounds`: each evidence lower bound is below the log-likelihood and touches it at its own parameter."""

import json

import pytest
import torch

from latentia.commands.bounds import bounds
from latentia.commands.main import main
from latentia.errors import DataError, UsageError
from latentia.inference.bound_curves import em_bounds


def test_bounds_are_below_touch_and_lead_upwards():
    curves = bounds("digits", iterations=4, max_samples=200).curves
    assert (curves.bounds <= curves.log_likelihood + 1e-12).all()
    spacing = curves.grid[1] - curves.grid[0]
    assert curves.slopes[0] > 0.05 and (curves.slopes[:-1] - curves.bound_slopes).abs().max() < 1e-10
    assert (curves.touched.diff() > 0).all() and curves.slopes[-1].abs() < curves.slopes[0].abs() / 4
    for theta, touched, values, following in zip(curves.iterates, curves.touched, curves.bounds, curves.iterates[1:]):
        gap = (curves.log_likelihood - values)[(curves.grid - theta).abs().argmin()]
        assert gap < 1e-3 and (curves.grid[values.argmax()] - following).abs() <= spacing
        assert values.max() >= touched  # so that the likelihood never falls


def test_the_command_draws_and_prints(tmp_path, capsys):
    folder = tmp_path / "bounds"
    main(["bounds", "digits", "--iterations", "2", "--max_samples", "60", "--output_dir", str(folder)])
    printed = capsys.readouterr().out
    assert "first principal component of digits" in printed and f"Written: {folder}" in printed
    written = json.loads((folder / "bounds.json").read_text())
    assert len(written["bounds"]) == 2 and len(written["bounds"][0]) == len(written["grid"]) == 400
    assert (folder / "bounds.png").read_bytes().startswith(b"\x89PNG")
    table = tmp_path / "flat.csv"
    table.write_text("a,b\n1,2\n1,2\n1,2\n")
    with pytest.raises(DataError, match="samples that differ"):
        bounds(str(table))
    with pytest.raises(UsageError, match=r"x must be values \(N, 1\) that differ"):
        em_bounds(torch.zeros(3, 2))

"""Evidence of a task: laws of its sums, and what it tells of images that it has not seen."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fusion.answers.class_sums import shrunk, whitener
from fusion.answers.evidence import MAX_HELD_OUT, Evidence, measure_evidence
from fusion.answers.router import FALSE_ALARM, Router, gate
from fusion.tensors import TensorFile, write_tensors

DIMENSIONS = 6


def images(seed: int, count: int, *, classes: int = 3, shift: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit features around one direction per class, all of them moved by `shift`."""
    random = torch.Generator().manual_seed(seed)
    centres = torch.eye(DIMENSIONS)[:classes] + shift * torch.eye(DIMENSIONS)[-1]
    labels = torch.randint(classes, (count,), generator=random)
    features = centres[labels] + 0.2 * torch.randn(count, DIMENSIONS, generator=random)
    return torch.nn.functional.normalize(features, dim=1), labels


@given(seed=st.integers(0, 99), count=st.integers(0, 40), cut=st.integers(0, 40))
def test_sums_of_two_parts_are_those_of_the_whole(seed: int, count: int, cut: int) -> None:
    features, labels = images(seed, count)
    whole = measure_evidence(features, labels, 3)
    parts = measure_evidence(features[:cut], labels[:cut], 3).combined(
        measure_evidence(features[cut:], labels[cut:], 3)
    )
    assert torch.equal(parts.base.counts, whole.base.counts)
    assert parts.base.dof == whole.base.dof
    torch.testing.assert_close(parts.base.means, whole.base.means, atol=1e-5, rtol=0)
    torch.testing.assert_close(parts.base.scatter, whole.base.scatter, atol=1e-4, rtol=0)


def test_held_out_distances_are_sorted_few_and_larger_than_those_of_images_that_were_seen() -> None:
    features, labels = images(0, 1500)
    found = measure_evidence(features, labels, 3).held_out
    assert len(found) == MAX_HELD_OUT
    assert torch.equal(found, found.sort().values)
    few, their_labels = images(1, 24)
    one = measure_evidence(few, their_labels, 3)
    white = whitener(one.base.scatter.double() / one.base.dof)
    seen = ((few.double() - one.base.means[their_labels].double()) @ white).square().sum(1)
    assert one.held_out.median() > seen.median()


@pytest.mark.parametrize(("count", "classes"), [(0, 2), (1, 1), (1, 3), (3, 3)])
def test_too_few_images_are_no_error(count: int, classes: int) -> None:
    features, labels = images(2, count, classes=classes)
    labels = torch.arange(count) % classes
    one = measure_evidence(features, labels, classes)
    assert torch.isfinite(one.base.scatter).all()
    router = Router({"few": one, "more": measure_evidence(*images(3, 60), 3)})
    scores = router.log_likelihoods(images(4, 5)[0])
    assert not scores.isnan().any()
    assert (router.p_values(images(4, 5)[0], "few") >= 0).all()


def test_a_single_image_leaves_no_held_out_distance_and_closes_the_gate() -> None:
    features, labels = images(5, 1, classes=1)
    router = Router({"one": measure_evidence(features, labels, 1)})
    assert gate(router.p_values(features, "one")).tolist() == [0.0]


def test_it_comes_back_from_a_file(tmp_path: Path) -> None:
    one = measure_evidence(*images(6, 50), 3)
    write_tensors(tmp_path / "evidence.safetensors", one.tensors())
    back = Evidence.from_file(TensorFile(tmp_path / "evidence.safetensors"))
    for name, tensor in one.tensors().items():
        assert torch.equal(back.tensors()[name], tensor), name


def test_a_wide_scatter_is_kept_in_16_bits_and_loses_little(tmp_path: Path) -> None:
    random = torch.Generator().manual_seed(0)
    features = torch.nn.functional.normalize(torch.randn(40, 600, generator=random), dim=1)
    one = measure_evidence(features, torch.arange(40) % 4, 4)
    write_tensors(tmp_path / "evidence.safetensors", one.tensors())
    file = TensorFile(tmp_path / "evidence.safetensors")
    assert file.specs["scatter"].dtype == "F16"
    error = (Evidence.from_file(file).base.scatter - one.base.scatter).norm() / one.base.scatter.norm()
    assert error < 1e-3


@given(seed=st.integers(0, 20))
def test_a_whitener_measures_the_distance_of_its_covariance(seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    factor = torch.randn(DIMENSIONS, 3, generator=random, dtype=torch.float64)
    covariance = factor @ factor.T
    x = torch.randn(DIMENSIONS, generator=random, dtype=torch.float64)
    expected = x @ torch.linalg.inv(shrunk(covariance)) @ x
    torch.testing.assert_close((x @ whitener(covariance)).square().sum(), expected)


def test_the_router_equals_its_equation() -> None:
    evidence = {"a": measure_evidence(*images(7, 60), 3), "b": measure_evidence(*images(8, 30, classes=2, shift=1), 2)}
    weights = {name: one.base.dof / (one.base.dof + DIMENSIONS) for name, one in evidence.items()}
    pooled = sum(weights[n] * one.base.scatter.double() / one.base.dof for n, one in evidence.items()) / sum(
        weights.values()
    )
    inverse = torch.linalg.inv(shrunk(torch.as_tensor(pooled)))
    features = images(9, 8)[0]
    expected = torch.empty(8, 2, dtype=torch.float64)
    for t, one in enumerate(evidence.values()):
        apart = features.double()[:, None] - one.base.means.double()[None]
        distances = torch.einsum("bcd,de,bce->bc", apart, inverse, apart)
        expected[:, t] = (-0.5 * distances).exp().mean(1).log()
    torch.testing.assert_close(Router(evidence).log_likelihoods(features), expected, atol=1e-8, rtol=1e-6)


def test_images_are_routed_to_their_own_task_and_strangers_are_unusual() -> None:
    router = Router({"a": measure_evidence(*images(10, 200), 3), "b": measure_evidence(*images(11, 200, shift=1.5), 3)})
    own, strange = images(12, 200, shift=1.5)[0], torch.nn.functional.normalize(-torch.ones(5, DIMENSIONS), dim=1)
    assert (router.log_likelihoods(own).argmax(1) == 1).float().mean() > 0.95
    unusual = (router.p_values(own, "b") < FALSE_ALARM).float().mean()
    assert 0.01 < unusual < 0.12, "about one in twenty of a task's own images"
    assert (router.p_values(strange, "b") == 0).all()

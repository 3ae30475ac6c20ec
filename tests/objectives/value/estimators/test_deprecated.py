"""The former names of the temporal-difference estimators."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn

from tritonrl.objectives.value import (
    TD0Estimate,
    TD0Estimator,
    TD1Estimate,
    TD1Estimator,
    TDLambdaEstimate,
    TDLambdaEstimator,
)

Rollouts = Callable[..., TensorDict]

FORMER = pytest.mark.parametrize(
    ("former", "present", "options"),
    [
        (TD0Estimate, TD0Estimator, {}),
        (TD1Estimate, TD1Estimator, {}),
        (TDLambdaEstimate, TDLambdaEstimator, {"lmbda": 0.8}),
    ],
)


@FORMER
def test_a_former_name_warns_the_caller_and_computes_the_same(
    former: Any, present: Any, options: dict[str, Any], critic: TensorDictModule, make_rollout: Rollouts
) -> None:
    options = {"gamma": 0.9, "value_network": critic, "average_rewards": True, **options}
    with pytest.warns(DeprecationWarning, match=f"^{former.__name__} is now called {present.__name__}.$") as caught:
        estimator = former(**options)
    assert [warning.filename for warning in caught] == [__file__]
    assert isinstance(estimator, present)
    out, expected = estimator(make_rollout(3, 7)), present(**options)(make_rollout(3, 7))
    assert set(out.keys(True, True)) == set(expected.keys(True, True))
    for key in expected.keys(True, True):
        assert torch.equal(out[key], expected[key])


@FORMER
def test_a_former_name_refuses_what_the_present_one_refuses(former: Any, present: Any, options: dict[str, Any]) -> None:
    for cls in (former, present):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            with pytest.raises(TypeError, match="value_network"):
                cls(gamma=0.9, **options)
            with pytest.raises(TypeError, match="vectorised"):
                cls(gamma=0.9, value_network=None, vectorised=True, **options)


@FORMER
def test_the_present_name_copies_and_loads_do_not_warn(former: Any, present: Any, options: dict[str, Any]) -> None:
    with pytest.warns(DeprecationWarning):
        estimator = former.for_loss(nn.Module(), gamma=0.9, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        present(gamma=0.9, value_network=None, **options)
        for twin in (copy.deepcopy(estimator), pickle.loads(pickle.dumps(estimator))):
            assert type(twin) is former
            assert twin.gamma == estimator.gamma

"""Simulated click logs: annotated lists, a logging policy, and a click model whose relevance reads the grades.

A simulated user is an ordinary click model, so simulated and estimated behaviour cannot drift apart.

    policies.py            who ranks: `Policy`, and the `FittedPolicy` that it becomes on a collection
    ranking_sampler.py     rankings drawn from a policy
    examination_curves.py  how far users read; `Context` and drift change it
    users.py               `user`: click models with the constants of the literature
    wrapped_users.py       `NoisyUser`, and `BottomUpUser` who reads from the last rank upwards
    scan_clicks.py         exact click probabilities of such users
    click_simulation.py    `clicks`: simulates a log and streams it to disk
    click_sampling.py      the sessions and clicks of a log, block by block
    entropy.py             the lowest perplexity that any model can have
    ground_truth.py        the user's description in the metadata of a log
    synthetic.py           `collection`: synthetic graded lists
"""

from ultr.simulate.click_simulation import clicks
from ultr.simulate.examination_curves import EXAMINATIONS, BiasExponent, Context, RankCurve
from ultr.simulate.policies import RANKERS, FittedPolicy, Policy
from ultr.simulate.synthetic import collection
from ultr.simulate.users import USERS, user
from ultr.simulate.wrapped_users import BottomUpUser, NoisyUser

__all__ = [
    "EXAMINATIONS",
    "RANKERS",
    "USERS",
    "BiasExponent",
    "BottomUpUser",
    "Context",
    "FittedPolicy",
    "NoisyUser",
    "Policy",
    "RankCurve",
    "clicks",
    "collection",
    "user",
]

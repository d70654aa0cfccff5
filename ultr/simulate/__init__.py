"""Simulated click logs: annotated lists, a logging policy and a click model whose relevance reads the grades.

A simulated user is an ordinary click model, so simulated and estimated behaviour cannot drift apart.

    policies.py   who ranks: `Policy`, and the `Logger` that it becomes on a collection
    rankings.py   rankings drawn from a policy
    curves.py     how far users read; `Context` and drift change it
    users.py      `user`: click models with the constants of the literature
    processes.py  `Noisy` clicks, and users who read `BottomUp`
    entropy.py    the lowest perplexity that any model can have
    truth.py      what the metadata say of the user
    log.py        `clicks`: all of it, streamed to disk
    synthetic.py  `collection`: made-up graded lists
"""

from ultr.simulate.curves import EXAMINATIONS, Bias, Context, Curve
from ultr.simulate.log import clicks
from ultr.simulate.policies import RANKERS, Logger, Policy
from ultr.simulate.processes import BottomUp, Noisy
from ultr.simulate.synthetic import collection
from ultr.simulate.users import USERS, user

__all__ = [
    "EXAMINATIONS",
    "RANKERS",
    "USERS",
    "Bias",
    "BottomUp",
    "Context",
    "Curve",
    "Logger",
    "Noisy",
    "Policy",
    "clicks",
    "collection",
    "user",
]

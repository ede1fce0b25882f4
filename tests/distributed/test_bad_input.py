"""Bad arguments on real ranks: a typed error on every rank that says what to do, before any step.

Every case is tried in turn on the same two ranks; what each rank was told is looked at afterwards. A case
that left a rank waiting would end the whole run at its deadline.
"""

from __future__ import annotations

import re

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from hdet_ray import (
    ConfigError,
    Fixed,
    HDETOneCycleLR,
    Paper,
)
from tests.distributed import loops
from tests.distributed.ranks import run_on_ranks
from tests.distributed.refusals import LOCAL, ODD_ONE, SEARCHING, SHARED, Case, hooked, make, odd, told


def _sharded(rank: int) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    net = loops.make_net()
    fully_shard(net[0], mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    return net


def hooked_on_one_rank(rank: int) -> None:
    model = loops.wrap(loops.make_net())
    if rank == ODD_ONE:
        model.register_comm_hook(None, allreduce_hook)
    HDETOneCycleLR(
        loops.make_optimizer("sgd", model), max_lr=0.1, total_steps=400, model=model, controller=SEARCHING
    )


def _three_features(rank: int) -> None:
    net = nn.Sequential(nn.Linear(6, odd(rank, 17, 16)), nn.Linear(odd(rank, 17, 16), 1))
    make(net, is_wrapped=False, model=None)


def _one_group_more(rank: int) -> None:
    net = loops.make_net()
    groups = [{"params": [p]} for p in net.parameters()] if rank == ODD_ONE else net.parameters()
    make(net, is_wrapped=False, model=None, optimizer=torch.optim.SGD(groups, lr=0.1, momentum=0.9))


def _swapped_groups(rank: int) -> None:
    net = loops.make_net()
    weights, others = [p for p in net.parameters() if p.ndim > 1], [p for p in net.parameters() if p.ndim < 2]
    groups = (
        [{"params": others}, {"params": weights}]
        if rank == ODD_ONE
        else [{"params": weights}, {"params": others}]
    )
    make(net, is_wrapped=False, model=None, optimizer=torch.optim.SGD(groups, lr=0.1, momentum=0.9))


def _net_with_batch_norm_on_one_rank(rank: int) -> None:
    net = loops.make_net(batch_norm=rank == ODD_ONE)
    optimizer = torch.optim.SGD([net[0].weight], lr=0.1, momentum=0.9)
    make(net, is_wrapped=False, controller=LOCAL, optimizer=optimizer)


def _synchronized_batch_norm(**settings: object) -> HDETOneCycleLR:
    # On the CPU DDP refuses the layer itself; alone, the scheduler is the one that has to.
    net = nn.SyncBatchNorm.convert_sync_batchnorm(loops.make_net(batch_norm=True))
    return make(net, is_wrapped=False, **settings)


CONSTRUCTORS: dict[str, Case] = {
    "synchronized batch statistics where replicas train apart": (
        lambda r: _synchronized_batch_norm(controller=LOCAL),
        ConfigError,
        "1 is a SyncBatchNorm over .* would mix their statistics.*use BatchNorm",
    ),
    "another number of parameter groups": (_one_group_more, ConfigError, "rank 1 has parameter_groups"),
    "another order of parameter groups": (_swapped_groups, ConfigError, r"rank 1 has parameter_groups\[0\]"),
    "another shape": (_three_features, ConfigError, r"float32\[17, 6\]', rank 0 has 'float32\[16, 6\]'"),
    "another dtype": (
        lambda r: make(
            loops.make_net(dtype=odd(r, torch.float32, torch.float64)), is_wrapped=False, model=None
        ),
        ConfigError,
        "'float32.*rank 0 has 'float64",
    ),
    "other buffers": (_net_with_batch_norm_on_one_rank, ConfigError, "rank 1 has model = "),
    "another max_lr": (
        lambda r: make(max_lr=odd(r, 0.02, 0.01)),
        ConfigError,
        r"max_lr\[0\] = 0.02, rank 0 has 0.01",
    ),
    "another total_steps": (
        lambda r: make(total_steps=odd(r, 300, 400)),
        ConfigError,
        "total_steps = 300, rank 0 has 400",
    ),
    "another sync_every": (
        lambda r: make(controller=Fixed(sync_every=odd(r, 7, 10))),
        ConfigError,
        "sync_every = 7, rank 0 has 10",
    ),
    "another controller": (
        lambda r: make(controller=odd(r, Paper(), SHARED)),
        ConfigError,
        r"rank 1 has settings\.controller",
    ),
    "another seed": (lambda r: make(seed=odd(r, 5, 0)), ConfigError, "seed = 5, rank 0 has 0"),
    "another last_epoch": (
        lambda r: make(last_epoch=odd(r, 3, -1)),
        ConfigError,
        "last_epoch = 3, rank 0 has -1",
    ),
    "another warm_noise": (
        lambda r: make(warm_noise=odd(r, 0.1, 0.0)),
        ConfigError,
        "warm_noise = 0.1, rank 0 has 0.0",
    ),
    "another average_optimizer_state": (
        lambda r: make(average_optimizer_state=odd(r, False, True)),
        ConfigError,
        "average_optimizer_state = False, rank 0 has True",
    ),
    "a grad scaler on one rank only": (
        lambda r: make(grad_scaler=odd(r, torch.amp.GradScaler("cpu"), None)),
        ConfigError,
        "has_grad_scaler = True, rank 0 has False",
    ),
    "a model on one rank only": (
        lambda r: make(**({} if r == ODD_ONE else {"model": None})),
        ConfigError,
        "rank 1 has model",
    ),
    "a probe on one rank only": (
        lambda r: make(probe=odd(r, lambda k: 0.0, None)),
        ConfigError,
        "has_probe = True, rank 0 has False",
    ),
    "another probe_samples": (
        lambda r: make(probe=lambda k: 0.0, probe_samples=odd(r, 32, 64)),
        ConfigError,
        "probe_samples = 32, rank 0 has 64",
    ),
    "other hyperparameters": (
        lambda r: make(
            controller=Fixed(alpha=0.0), probe=lambda k: 0.0, hyperparameters=odd(r, ["weight_decay"], [])
        ),
        ConfigError,
        r"rank 1 has settings\.explored",
    ),
    "a bad value on one rank only": (
        lambda r: make(max_lr=odd(r, float("nan"), 0.1)),
        ConfigError,
        "max_lr=nan of group 0",
    ),
    "an argument of a wrong type on one rank only": (
        lambda r: make(hyperparameters=odd(r, 3, ())),
        ConfigError,
        "TypeError: 'int' object is not iterable",
    ),
    "no optimizer on one rank": (
        lambda r: make(optimizer=odd(r, loops.make_net(), None)),
        ConfigError,
        "optimizer=Sequential is none; pass",
    ),
    "a probe that is no function on one rank only": (
        lambda r: make(probe=odd(r, 0.5, lambda k: 0.0)),
        ConfigError,
        "probe=0.5 can't be called",
    ),
    "a hook of the user's own on one rank only": (
        hooked_on_one_rank,
        ConfigError,
        "already has the communication hook",
    ),
    "auto without a model": (
        lambda r: make(model=None, controller="auto"),
        ConfigError,
        r"needs model=, .* wrapped in DistributedDataParallel \(got NoneType\)",
    ),
    "auto with a model that is not wrapped": (
        lambda r: make(is_wrapped=False, controller="auto"),
        ConfigError,
        r"DistributedDataParallel \(got Sequential\)",
    ),
    "local gradients without a model": (
        lambda r: make(model=None, controller=LOCAL),
        ConfigError,
        "gradient_sync='local' needs model=",
    ),
    "shared gradients with a model that shares none": (
        lambda r: make(is_wrapped=False),
        ConfigError,
        "would share nothing; wrap it",
    ),
    "auto with a hook of the user's own": (
        lambda r: hooked(controller="auto"),
        ConfigError,
        "already has the communication hook.*leave out its register_comm_hook",
    ),
    "local gradients with a hook of the user's own": (
        lambda r: hooked(controller=LOCAL),
        ConfigError,
        "already has the communication hook",
    ),
    "a sharded model": (
        lambda r: make(_sharded(r), is_wrapped=False),
        ConfigError,
        "is sharded; .* wrap the model in DistributedDataParallel",
    ),
    "parameters of a sharded model": (
        lambda r: make(_sharded(r), is_wrapped=False, model=None),
        ConfigError,
        "is sharded",
    ),
    "a model wrapped on other ranks": (
        lambda r: make(process_group=dist.new_group([r], use_local_synchronization=True)),
        ConfigError,
        r"wrapped on ranks \[0, 1\], but the run has ranks \[[01]\]; give .* the same process_group=",
    ),
    "warm noise before a search": (
        lambda r: make(controller="auto", warm_noise=0.01),
        ConfigError,
        "warm_noise makes replicas differ.*controller='paper'",
    ),
    "warm noise where nothing converges": (
        lambda r: make(controller=Fixed(alpha=0.0), warm_noise=0.01),
        ConfigError,
        "use alpha above 0, or gradient_sync='local'",
    ),
    "more hyperparameters than replicas can tell apart": (
        lambda r: make(
            loops.make_net(dropout=0.1),
            probe=lambda k: 0.0,
            optimizer=None,
            controller=Fixed(alpha=1 / 9),
            hyperparameters=["dropout"],
        ),
        ConfigError,
        "replicas",
    ),
    "sync_every beyond the run": (
        lambda r: make(controller=Fixed(sync_every=401)),
        ConfigError,
        r"sync_every=401 is longer than the run \(total_steps=400\).*use at most 400",
    ),
}


def _refuse_all(rank: int) -> dict[str, tuple[str, str]]:
    return {name: told(case, rank) for name, (case, _, _) in CONSTRUCTORS.items()}


@pytest.fixture(scope="module")
def refusals(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, tuple[str, str]]]:
    return run_on_ranks(_refuse_all, 2, store_path=tmp_path_factory.mktemp("refusals"))


@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_every_rank_hears_before_any_step_what_does_not_fit(
    refusals: list[dict[str, tuple[str, str]]], name: str
) -> None:
    _, kind, words = CONSTRUCTORS[name]
    for heard in refusals:
        assert heard[name][0] == kind.__name__
        assert re.search(words, heard[name][1])

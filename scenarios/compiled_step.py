"""Compile forward, backward and the optimizer's update into one graph, for one step or for ten in a row.

What it changes: the whole step is one compiled function of the batch, the parameters and the optimizer's own state,
    all of which it updates in place, so that the model and the optimizer can be saved and used as ever. With `10`
    one call does ten steps on ten batches, and no time of a single step can be had. Groups with a batch of
    another shape run without it, step by step.
When it helps: small models, whose step is mostly Python and the launching of operations.
When it hurts: compiling takes seconds, ten steps in one graph tens of seconds; a model that is a few large
    matmuls gains little. Gradients left in `.grad` and Python in the loss are gone after the first step. Where hooks
    or a scheduler hang on the optimizer or on gradients, it is refused.
Source: https://docs.pytorch.org/docs/stable/func.whirlwind_tour.html
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from perftool.scenario import Code, Context, Scenario, refuse_unlisted
from perftool.words import FETCH, LAUNCH_BOUND, STEP, Engaged, Proving, Settings

if TYPE_CHECKING:
    import torch

    from perftool.plan import Live, Looped, Plan, Step
    from perftool.workload import Batch

    Update = Callable[[list[torch.Tensor], list[torch.Tensor], "States"], None]

VALUES = ("off", "1", "10")
OPTIMIZERS = ("Adam", "AdamW", "SGD")
PROOF_CALLS = 3  # one of them may have the last batch of an epoch, of another shape
REGION = "Torch-Compiled Region"
OPERATIONS = ("aten::", "Optimizer.step#", "autograd::engine")
SEVERAL_UP_TO_PARAMETERS = 50_000  # a call's own cost is some 50 us, which more parameters than these outweigh
COPYING = ("aten::to", "aten::_to_copy", "aten::empty_strided", "aten::copy_")  # of a batch to the device


def default(_: Context) -> str:
    return "off"


def values(_: Context) -> Sequence[str]:
    return VALUES


def refusal(value: str, context: Context) -> str | None:
    machine, facts = context.machine, context.workload
    if value == "off" or value not in VALUES:
        return refuse_unlisted(value, VALUES)
    if facts.optimizer_step not in OPTIMIZERS:
        return f"{facts.optimizer} has a step of its own; it can be compiled in for Adam, AdamW and SGD"
    if facts.optimizer_options.get("differentiable"):
        return f"{facts.optimizer}(differentiable=True) keeps its update for a backward"
    if facts.changes_buffers:
        return "the forward pass changes buffers (running statistics, as BatchNorm's), which it would leave behind"
    if not context.on_cuda and machine.compiler is None:
        return "there is no C++ compiler; install g++ (Debian: apt-get install g++) or set CXX"
    if context.on_cuda and not machine.triton:
        return "Triton is not installed; pip install triton"
    if context.on_cuda and (machine.device_capability or [0])[0] < 7:
        return "Triton needs a GPU of compute capability 7.0 or newer"
    return None


def discouraged(value: str, context: Context) -> str | None:
    if value == "10" and context.workload.parameter_count > SEVERAL_UP_TO_PARAMETERS:
        return "a step of so large a model takes much longer than what ten steps per call save, as does compiling them"
    return None


def clash(value: str, others: Settings) -> str | None:
    if value == "off":
        return None
    if others.get("torch_compile", "off") != "off":
        return "the whole step is compiled already, with the model in it; leave torch_compile out"
    if others.get("cuda_graphs", "off") != "off":
        return "the compiled step has not been seen to work within a CUDA graph; leave one of them out"
    if others.get("amp") == "fp16":
        return "a scaled loss decides about each update in Python, which no single graph can hold; use amp=bf16"
    if "optimizer_kernel" in others:
        return "the update is compiled in, so optimizer_kernel would change nothing; leave it out"
    return None


def apply(plan: Plan, value: str) -> Plan:
    if value == "off":
        return plan
    return replace(plan, step=(*plan.step, compiled), steps_per_call=int(value), whole_step=True)


def compiled(training: Looped, step: Step) -> Step:
    """The step, or so many in a row, as one graph, compiled at the first batches that have one shape.

    Raises SettingError, with the reason, for what cannot be compiled so.
    """
    whole: Whole | None = None
    several = training.steps_per_call > 1

    def call(batches: Batch) -> torch.Tensor:
        nonlocal whole
        group = batches if several else (batches,)
        if whole is None and is_uniform(group):
            whole = Whole(training, group)
        if whole is not None and whole.fits(group):
            return whole.run(group)
        return one_by_one(step, batches) if several else step(batches)

    return call


def is_uniform(batches: Sequence[Batch]) -> bool:
    """Whether all batches have the shapes of the first."""
    from perftool.training import tensors_of

    shapes = [[part.shape for part in tensors_of(batch)] for batch in batches]
    return all(one == shapes[0] for one in shapes)


def one_by_one(step: Step, batches: Sequence[Batch]) -> torch.Tensor:
    """Losses of eager steps, of shape (len(batches),)."""
    import torch

    # Cloned, since a step may write every loss into the same place.
    return torch.stack([step(batch).clone() for batch in batches])


class Whole:
    """A training's step, with so many in a row as there are first batches, as one compiled function."""

    def __init__(self, training: Looped, batches: Sequence[Batch]) -> None:
        """Prepare, with the optimizer's state as its first step would make it; compiled is at the first `run`."""
        import torch

        from perftool.plan import SettingError, backward_and_step
        from perftool.training import configure, leaves_of

        if training.plan.update is not backward_and_step:
            raise SettingError("the update is not plain backward and step, so it cannot be compiled in")
        if training.model is not training.module:
            raise SettingError("the model is compiled or replaced already, and cannot be compiled in")
        others = [leaf for leaf in leaves_of(batches) if not isinstance(leaf, torch.Tensor)]
        if others:
            raise SettingError(f"a batch holds a {type(others[0]).__name__}; it must hold tensors only")
        optimizer = training.optimizer
        hung = hooks_of(optimizer, training.module)
        if hung is not None:
            raise SettingError(f"{hung}, which a compiled step would leave out")
        if training.device.type == "cuda" and "capturable" in optimizer.defaults:
            configure(optimizer, {"capturable": True})  # its count of steps on the GPU, too
        self._flat = all(
            type(batch) in (list, tuple) and all(isinstance(part, torch.Tensor) for part in batch) for batch in batches
        )
        self._shapes = self._shapes_of(batches)[:1] * len(batches)
        lossy = lossy_module(training)
        names = {parameter: name for name, parameter in lossy.named_parameters()}
        used = parameters_in_use(training, batches[0])
        groups = [
            (group, [part for part in group["params"] if part in used])
            for group in optimizer.param_groups
            if any(part in used for part in group["params"])
        ]
        if any(part not in names for _, parts in groups for part in parts):
            raise SettingError("the optimizer has parameters that are not the model's, which cannot be compiled in")
        self._groups = [group for group, _ in groups]
        self._options = options_of(self._groups)
        self._parameters = [[part.detach() for part in parts] for _, parts in groups]
        self._states = [states_of([with_state(optimizer, group, part) for part in parts]) for group, parts in groups]
        self._run = whole_step(
            lossy,
            [[names[part] for part in parts] for _, parts in groups],
            [update_of(optimizer, group) for group, _ in groups],
            several=training.steps_per_call > 1,
        )
        self._compiled = False

    def _shapes_of(self, batches: Sequence[Batch]) -> list[list[torch.Size]]:
        from perftool.training import tensors_of

        # Called at every step: usually a batch is a list of tensors, and need not be searched for them.
        return [[part.shape for part in (batch if self._flat else tensors_of(batch))] for batch in batches]

    def fits(self, batches: Sequence[Batch]) -> bool:
        """Whether the batches have the shapes of the first ones."""
        return self._shapes_of(batches) == self._shapes

    def run(self, batches: Sequence[Batch]) -> torch.Tensor:
        """Train on the batches; returns the loss, or the losses where there are several.

        Raises SettingError at the first call where the step cannot be compiled, and at one before which somebody has
        changed the learning rate; nothing is changed then.
        """
        from perftool.plan import SettingError

        if options_of(self._groups) != self._options:
            raise SettingError("the options of the optimizer change while it trains, which a compiled step has frozen")
        if self._compiled:
            return self._run(self._parameters, self._states, batches)
        from torch._dynamo.exc import TorchDynamoException

        try:
            loss = self._run(self._parameters, self._states, batches)
        except TorchDynamoException as error:
            first = str(error).strip().splitlines()[0]
            raise SettingError(f"the step cannot be compiled as one graph: {first}") from error
        self._compiled = True
        return loss


def hooks_of(optimizer: torch.optim.Optimizer, module: torch.nn.Module) -> str | None:
    """What hangs on an optimizer's step or on a backward pass, and so does not come where neither is called; None where
    nothing does."""
    from torch.optim import optimizer as module_of_optimizers

    every = (module_of_optimizers._global_optimizer_pre_hooks, module_of_optimizers._global_optimizer_post_hooks)
    own = (optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks)
    if any(every) or any(own):
        return "hooks are registered on the optimizer's step"
    if "step" in vars(optimizer):
        return "the optimizer's step is wrapped, as a learning-rate scheduler does it"
    if any(part._backward_hooks or part._post_accumulate_grad_hooks for part in module.parameters()):
        return "hooks are registered on gradients"
    if any(one._backward_hooks or one._backward_pre_hooks for one in module.modules()):
        return "hooks are registered on the backward pass of modules"
    return None


def options_of(groups: Sequence[Mapping[str, Any]]) -> list[tuple[Any, ...]]:
    """What an optimizer's groups have beside their parameters. Looked at before each call."""
    return [tuple(group[name] for name in group if name != "params") for group in groups]


def lossy_module(training: Looped) -> torch.nn.Module:
    """A module whose output is the training's loss, and whose parameters are the model's."""
    from torch import nn

    class Lossy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = training.module
            self.loss = training.loss

        def forward(self, batch: Batch) -> torch.Tensor:
            return self.loss(self.model, batch)

    return Lossy()


def parameters_in_use(training: Looped, batch: Batch) -> set[torch.nn.Parameter]:
    """Parameters that the loss depends on, found by one backward that changes nothing.

    The others get no gradient from autograd, so that the optimizer leaves them alone, but zeros from torch.func.
    Raises SettingError where the forward pass changes buffers, which a function of the parameters does not keep.
    """
    import torch

    from perftool.plan import SettingError

    trained = [parameter for parameter in training.module.parameters() if parameter.requires_grad]
    buffers = list(training.module.buffers())
    versions = [buffer._version for buffer in buffers]
    with torch.random.fork_rng(devices=[training.device] if training.device.type == "cuda" else []):
        value = training.loss(training.module, batch)
        gradients: Sequence[torch.Tensor | None] = torch.autograd.grad(value, trained, allow_unused=True)
    if any(buffer._version != version for buffer, version in zip(buffers, versions, strict=True)):
        raise SettingError("the forward pass changes buffers (running statistics), which it would leave behind")
    return {part for part, gradient in zip(trained, gradients, strict=True) if gradient is not None}


def whole_step(
    lossy: torch.nn.Module, names: Sequence[Sequence[str]], updates: Sequence[Update], *, several: bool
) -> Callable[..., torch.Tensor]:
    """The compiled function of (parameters, states, batches), all by group and, but for the batches, updated in place.

    names: of the parameters in `lossy`. several: it returns the losses of so many steps as there are batches.
    """
    import torch
    from torch.func import functional_call, grad_and_value

    flat_names = [name for group in names for name in group]

    def loss_of(parameters: list[torch.Tensor], batch: Batch) -> torch.Tensor:
        loss: torch.Tensor = functional_call(lossy, dict(zip(flat_names, parameters, strict=True)), (batch,))
        return loss

    differentiated = grad_and_value(loss_of)

    def run(
        parameters: list[list[torch.Tensor]], states: list[dict[str, list[torch.Tensor]]], batches: Sequence[Batch]
    ) -> torch.Tensor:
        losses = []
        for batch in batches:
            gradients, loss = differentiated([part for group in parameters for part in group], batch)
            start = 0
            for group, state, update in zip(parameters, states, updates, strict=True):
                update(group, list(gradients[start : start + len(group)]), state)
                start += len(group)
            losses.append(loss)
        return torch.stack(losses) if several else losses[0]

    return torch.compile(run, fullgraph=True, dynamic=False)


# ---------------------------------------------------------------------------------------------------- the optimizers

States = dict[str, "list[torch.Tensor]"]
"""Kind of state to its tensors, one per parameter."""


def with_state(
    optimizer: torch.optim.Optimizer, group: Mapping[str, Any], parameter: torch.nn.Parameter
) -> dict[str, torch.Tensor]:
    """The optimizer's own state of a parameter, made as the optimizer's first step would where there is none.

    Raises SettingError for a state that cannot be made beforehand.
    """
    import torch

    from perftool.plan import SettingError

    if isinstance(optimizer, torch.optim.SGD) and not group["momentum"]:
        return {}
    state: dict[str, torch.Tensor] = optimizer.state[parameter]
    if isinstance(optimizer, torch.optim.SGD):
        if group["dampening"]:
            raise SettingError("SGD(dampening=...) treats its first step otherwise, which cannot be compiled in")
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        return state
    kinds = ["exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if group["amsgrad"] else [])]
    if not state:
        on_device = group["capturable"] or group["fused"]
        double = torch.get_default_dtype() == torch.float64 and not group["fused"]
        state["step"] = torch.zeros(
            (), dtype=torch.float64 if double else torch.float32, device=parameter.device if on_device else "cpu"
        )
        state.update({kind: torch.zeros_like(parameter, memory_format=torch.preserve_format) for kind in kinds})
    return state


def states_of(states: Sequence[Mapping[str, torch.Tensor]]) -> States:
    """One state per parameter, turned into one list per kind."""
    return {kind: [state[kind].detach() for state in states] for kind in states[0]}


def update_of(optimizer: torch.optim.Optimizer, group: Mapping[str, Any]) -> Update:
    """The optimizer's update with the options of a group, as a function of tensors."""
    return sgd_update(group) if group.get("betas") is None else adam_update(optimizer, group)


# Nowhere below stands `add(..., alpha=...)` on a gradient: where the gradient is a matmul, the compiler makes an addmm
# of both and drops the alpha (torch 2.13, `addmm` in torch/_inductor/fx_passes/post_grad.py).


def sgd_update(group: Mapping[str, Any]) -> Update:
    """That of torch.optim.SGD."""
    lr, momentum, weight_decay = group["lr"], group["momentum"], group["weight_decay"]
    nesterov, sign = group["nesterov"], -1 if group["maximize"] else 1

    def update(parameters: list[torch.Tensor], gradients: list[torch.Tensor], states: States) -> None:
        for index, parameter in enumerate(parameters):
            gradient = sign * gradients[index]
            if weight_decay:
                gradient = gradient + weight_decay * parameter
            if momentum:
                buffer = states["momentum_buffer"][index]
                buffer.mul_(momentum).add_(gradient)
                gradient = gradient + momentum * buffer if nesterov else buffer
            parameter.sub_(lr * gradient)

    return update


def adam_update(optimizer: torch.optim.Optimizer, group: Mapping[str, Any]) -> Update:
    """That of torch.optim.Adam and AdamW."""
    import torch
    from torch.optim import adam, adamw

    beta1, beta2 = group["betas"]
    names = ("amsgrad", "lr", "weight_decay", "eps", "maximize", "capturable", "differentiable")
    options = {name: group[name] for name in names}
    # Grouped on a GPU, where the compiler makes one kernel for all parameters.
    options |= {"foreach": group["params"][0].device.type == "cuda", "fused": False}
    function: Callable[..., None] = adam.adam
    l2 = 0.0
    if isinstance(optimizer, torch.optim.AdamW):
        function = adamw.adamw
    elif group.get("decoupled_weight_decay"):
        options["decoupled_weight_decay"] = True
    else:
        l2 = -group["weight_decay"] if group["maximize"] else group["weight_decay"]
        options["weight_decay"] = 0.0

    def update(parameters: list[torch.Tensor], gradients: list[torch.Tensor], states: States) -> None:
        if l2:
            gradients = [one + l2 * parameter for one, parameter in zip(gradients, parameters, strict=True)]
        largest = states.get("max_exp_avg_sq", [])
        moments = (states["exp_avg"], states["exp_avg_sq"], largest, states["step"])
        function(parameters, gradients, *moments, beta1=beta1, beta2=beta2, **options)

    return update


# ------------------------------------------------------------------------------------------------- proof and handover


def proof(training: Live, value: str) -> Proving:
    """Profiles of a few calls: one is a single compiled region with nothing beside it but copies."""
    from torch.profiler import ProfilerActivity, profile

    seen: list[str] = []
    for _ in range(PROOF_CALLS):
        yield FETCH
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            yield STEP
        events = list(profiled.events() or [])
        regions = [event.time_range for event in events if event.name.startswith(REGION)]
        outside = {
            event.name
            for event in events
            if event.name.startswith(OPERATIONS)
            and event.name not in COPYING
            and not any(one.start <= event.time_range.start and event.time_range.end <= one.end for one in regions)
        }
        if value == "off":
            eager = any(name.startswith("Optimizer.step#") for name in outside)
            return Engaged(ok=eager, evidence=f"the optimizer's own step {'ran' if eager else 'did not run'}")
        if len(regions) == 1 and not outside and training.plan.steps_per_call == int(value):
            steps = "one step" if value == "1" else f"{value} steps"
            return Engaged(ok=True, evidence=f"{steps} ran as one compiled region, with nothing beside")
        seen.append(f"{len(regions)} compiled regions and {len(outside)} kinds of operations beside them")
    return Engaged(
        ok=False, evidence=f"of {PROOF_CALLS} calls none ran as one compiled region; the last had {seen[-1]}"
    )


def code(value: str, context: Context) -> Code:
    if value == "off":
        return Code()
    facts = context.workload
    if facts.optimizer_step == "SGD":
        imports, state, update = "", _SGD_STATE, _SGD_UPDATE
    else:
        # One class in recent versions of torch, where AdamW's groups say that they decouple; two in older ones.
        function = facts.optimizer_step.lower() if facts.optimizer_step else "adam"
        imports, state = f"from torch.optim.{function} import {function}", _ADAM_STATE
        decoupled = "option.get('decoupled_weight_decay', False)" if function == "adam" else "True"
        update = _ADAM_UPDATE.replace("FUNCTION", function).replace("DECOUPLED", decoupled)
        if function == "adam":
            update = update.replace("**rest)", "**rest, **extra)").replace(
                "    beta1, beta2",
                '    extra = {"decoupled_weight_decay": True} if decoupled else {}\n    beta1, beta2',
            )
    last = _SEVERAL.format(steps=value) if value != "1" else _ONE
    return Code(imports=f"{_IMPORTS}\n{imports}".strip(), step=_CODE.format(state=state, update=update) + last)


_IMPORTS = "from torch.func import functional_call, grad_and_value"
_CODE = """\
class Lossy(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.model = model

    def forward(self, batch):
        return loss_of(self.model, batch)


lossy = Lossy()  # every parameter must get a gradient in every step
groups = optimizer.param_groups
names = {{part: name for name, part in lossy.named_parameters()}}
order = [names[part] for group in groups for part in group["params"]]
for group in groups:
    for part in group["params"]:
        optimizer.state[part].update({state})
options = [{{key: option for key, option in group.items() if key != "params"}} for group in groups]
rates = [torch.tensor(0.0, dtype=torch.float64) for group in groups]  # a number would be compiled in as it is at first
parameters = [[part.detach() for part in group["params"]] for group in groups]
states = [[optimizer.state[part] for part in group["params"]] for group in groups]
differentiated = grad_and_value(lambda parts, batch: functional_call(lossy, dict(zip(order, parts)), (batch,)))


# No add(..., alpha=...) on gradients: inductor may make an addmm of it and drop the alpha (seen with torch 2.13).
def update(parts, grads, state, option):
{update}


@torch.compile(fullgraph=True, dynamic=False)
def compiled(parameters, states, rates, several):  # batches of one shape: drop_last=True
    for batch in several:
        grads, loss = differentiated([part for parts in parameters for part in parts], batch)
        grads = list(grads)
        for parts, state, option, rate in zip(parameters, states, options, rates):
            update(parts, grads[: len(parts)], state, {{**option, "lr": rate}})
            grads = grads[len(parts) :]
    return loss


def trained(several):
    for rate, group in zip(rates, groups):  # as a scheduler has them now
        rate.fill_(group["lr"])
    return compiled(parameters, states, rates, several)


"""
_ADAM_STATE = """{
            "step": torch.zeros((), device=part.device if group["capturable"] or group["fused"] else "cpu"),
            "exp_avg": torch.zeros_like(part),
            "exp_avg_sq": torch.zeros_like(part),
            **({"max_exp_avg_sq": torch.zeros_like(part)} if group["amsgrad"] else {}),
        }"""
_ADAM_UPDATE = """\
    kinds = ["exp_avg", "exp_avg_sq", "max_exp_avg_sq", "step"]
    lists = [[one[kind] for one in state if kind in one] for kind in kinds]
    keep = ("amsgrad", "lr", "eps", "maximize", "capturable", "differentiable")
    rest = {key: option[key] for key in keep}
    decoupled = DECOUPLED
    if not decoupled:
        sign = -1 if option["maximize"] else 1
        grads = [grad + sign * option["weight_decay"] * part for grad, part in zip(grads, parts)]
    decay = option["weight_decay"] if decoupled else 0.0
    beta1, beta2 = option["betas"]
    FUNCTION(parts, grads, *lists, beta1=beta1, beta2=beta2, weight_decay=decay, foreach=False, fused=False, **rest)"""
_SGD_STATE = """\
{"momentum_buffer": torch.zeros_like(part)} if group["momentum"] else {}"""
_SGD_UPDATE = """\
    for part, grad, one in zip(parts, grads, state):
        grad = (-grad if option["maximize"] else grad) + option["weight_decay"] * part
        if option["momentum"]:
            buffer = one["momentum_buffer"]
            buffer.mul_(option["momentum"]).add_(grad)
            grad = grad + option["momentum"] * buffer if option["nesterov"] else buffer
        part.sub_(option["lr"] * grad)"""
_ONE = """\
def step(batch):
    return trained([batch])"""
_SEVERAL = """\
waiting, last_loss = [], torch.zeros(())


def step(batch):
    \"\"\"Trains when {steps} batches have come; returns the loss of the last step until then.\"\"\"
    global last_loss
    waiting.append(batch)
    if len(waiting) == {steps}:
        last_loss = trained(waiting)
        waiting.clear()
    return last_loss"""


scenario = Scenario(
    __name__,
    __doc__,
    default=default,
    values=values,
    refusal=refusal,
    apply=apply,
    proof=proof,
    code=code,
    cures={LAUNCH_BOUND: ("1",)},
    discouraged=discouraged,
    clash=clash,
    changes="numerics",
    typical_gain=2.0,
)

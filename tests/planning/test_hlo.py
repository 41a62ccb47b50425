"""Costs read from compiled programs against counts by hand."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from tests.digits_run import tiny_config
from vit_jax.planning import hlo
from vit_jax.training.run import run_of

ONE = {"data": 1}
SMALL = {"batch_size": 32, "model__num_layers": 3, "mesh__min_shard_size": 1}


def costs(function, *arguments, axes=ONE, **options):
    return hlo.costs(jax.jit(function, **options).lower(*arguments).compile().as_text(), axes)


def test_a_loop_counts_as_often_as_it_runs():
    def looped(x, w):
        return jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, length=7)[0]

    found = costs(looped, jnp.ones((16, 32)), jnp.ones((32, 32)))
    assert found.flops == 7 * 2 * 16 * 32 * 32


def test_loops_in_loops_multiply():
    def inner(x, w):
        return jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, length=3)[0]

    def outer(x, w):
        return jax.lax.scan(lambda x, _: (inner(x, w), None), x, length=5)[0]

    assert costs(outer, jnp.ones((8, 8)), jnp.ones((8, 8))).flops == 15 * 2 * 8**3


@pytest.mark.parametrize(("padding", "stride"), [("VALID", 1), ("VALID", 3), ("SAME", 1)])
def test_convolutions_count_what_they_multiply_and_no_padding(padding, stride):
    text = """HloModule m

ENTRY %main (x: f32[2,9,9,3], w: f32[3,3,3,5]) -> f32[2] {
  %x = f32[2,9,9,3]{3,2,1,0} parameter(0)
  %w = f32[3,3,3,5]{3,2,1,0} parameter(1)
  ROOT %c = f32[{}]{3,2,1,0} convolution(%x, %w), window={window}, dim_labels=b01f_01io->b01f
}
"""
    low = 1 if padding == "SAME" else 0
    outs = range(-low, 9 + low - 2, stride)
    pad = f" pad={low}_{low}x{low}_{low}" if low else ""
    window = f"{{size=3x3 stride={stride}x{stride}{pad}}}"
    text = text.replace("f32[{}]", f"f32[2,{len(outs)},{len(outs)},5]").replace("{window}", window)
    valid = sum(1 for i in outs for k in range(3) if 0 <= i + k < 9) ** 2
    assert hlo.costs(text, ONE).flops == 2 * 2 * valid * 3 * 5


def test_what_is_gathered_scattered_and_reduced_is_told_with_its_axis_and_size():
    axes = {"data": 2, "fsdp": 4}
    there = jax.make_mesh((2, 4), tuple(axes), axis_types=(AxisType.Auto,) * 2)

    def each(x, w):  # w [16, 128] of [64, 128]
        whole = jax.lax.all_gather(w, "fsdp", tiled=True)
        part = jax.lax.psum_scatter(jnp.sin(x @ whole), "fsdp", scatter_dimension=1, tiled=True)
        return jax.lax.psum(part, "data")

    mapped = jax.shard_map(
        each, mesh=there, in_specs=(P("data"), P("fsdp")), out_specs=P(None, "fsdp")
    )
    found = costs(mapped, jnp.ones((16, 64)), jnp.ones((64, 128)), axes=axes)
    assert {(c.kind, c.axis, c.size, c.bytes, c.count) for c in found.collectives} == {
        ("all-gather", "fsdp", 4, 64 * 128 * 4, 1),
        ("reduce-scatter", "fsdp", 4, 8 * 128 * 4, 1),
        ("all-reduce", "data", 2, 8 * 32 * 4, 1),
    }


GROUPS = [
    ("replica_groups={{0,1,2,3},{4,5,6,7}}", "fsdp", 4),
    ("replica_groups={{0,4},{1,5},{2,6},{3,7}}", "data", 2),
    ("replica_groups=[2,4]<=[8]", "fsdp", 4),
    ("replica_groups=[4,2]<=[2,4]T(1,0)", "data", 2),
    ("replica_groups=[1,8]<=[8]", "data+fsdp", 8),
    ("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}", "fsdp", 4),
    ("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_0'}", "data", 2),
    ("replica_groups=mesh['axis_0'=8] {'axis_0'}", "data+fsdp", 8),
    ("replica_groups=mesh['a'=4,'b'=1,'c'=2], device_ids=([2,4]T(1,0)) {'a'}", "fsdp", 4),
    ("replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}", "data", 2),
    ("replica_groups=mesh['a'=2,'b'=4], device_ids=(0,2,4,6,1,3,5,7) {'a'}", "fsdp", 2),
    ("replica_groups={}", "data+fsdp", 8),
]


@pytest.mark.parametrize(("groups", "axis", "size"), GROUPS, ids=[g[0] for g in GROUPS])
def test_every_way_to_write_who_works_together_is_read(groups, axis, size):
    text = f"""HloModule m

ENTRY %main (x: f32[10]) -> f32[10] {{
  %x = f32[10]{{0}} parameter(0)
  ROOT %sum = f32[10]{{0}} all-reduce(%x), channel_id=1, {groups}, to_apply=%add
}}
"""
    (found,) = hlo.costs(text, {"data": 2, "fsdp": 4}).collectives
    assert found == hlo.Collective("all-reduce", axis, size, 40.0, 1)


def test_an_array_that_is_sliced_or_updated_in_a_loop_moves_its_part_alone():
    def through(stack):
        def one(x, layer):
            return x * layer, x

        return jax.lax.scan(one, jnp.ones((64, 1024)), stack)

    stack = jnp.ones((50, 64, 1024))
    found = costs(through, stack)
    assert found.bytes < 10 * stack.nbytes  # whole arrays a pass would be 100 of them


@pytest.mark.parametrize("changes", [
    {}, {"model__scan": True}, {"microbatch": 16}, {"mesh__data": 2, "mesh__fsdp": 4},
    {"mesh__data": 2, "mesh__fsdp": 2, "mesh__tensor": 2},
])  # fmt: skip
def test_a_whole_step_has_six_flops_for_each_multiply_accumulate(changes):
    config = tiny_config(**SMALL | changes)
    run = run_of(config)
    found = hlo.costs(run.compiled_step.as_text(), run.mesh.shape)
    whole = found.flops * run.mesh.size
    assert whole == pytest.approx(6 * run.model.macs * 32, rel=0.05)


LOOP = """HloModule m

%body (p: (s32[], f32[8,8])) -> (s32[], f32[8,8]) {
  %p = (s32[], f32[8,8]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[8,8] get-tuple-element(%p), index=1
  %two = s32[] constant(2)
  %next = s32[] add(%i, %two)
  %y = f32[8,8] dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %t = (s32[], f32[8,8]) tuple(%next, %y)
}

%condition (p: (s32[], f32[8,8])) -> pred[] {
  %p = (s32[], f32[8,8]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %end = s32[] constant(9)
  ROOT %less = pred[] compare(%i, %end), direction=LT
}

ENTRY %main (x: f32[8,8]) -> (s32[], f32[8,8]) {
  %x = f32[8,8] parameter(0)
  %start = s32[] constant(1)
  %t = (s32[], f32[8,8]) tuple(%start, %x)
  ROOT %loop = (s32[], f32[8,8]) while(%t), condition=%condition, body=%body
}
"""


def test_a_loop_that_the_compiler_did_not_count_is_counted_from_start_end_and_step():
    assert hlo.costs(LOOP, ONE).flops == 4 * 2 * 8**3  # 1, 3, 5, 7


PART = """
%NAME (a: bf16[2]) -> bf16[16] {
  %a = bf16[2]{0} parameter(0)
  %g = bf16[16]{0} all-gather(%a), channel_id=3, replica_groups=[1,8]<=[8], dimensions={0}, CHAIN
  ROOT %c = bf16[16]{0} custom-call(%g), custom_call_target="AsyncCollectiveNAME"
}
""".replace("CHAIN", 'frontend_attributes={chain_id="1"}')


def test_a_gather_that_goes_on_inside_a_loop_of_its_own_is_one_gather():
    """Started in one fusion, advanced by those of a loop, ended in another, as on a TPU."""
    dot = "dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}"
    ends = """  %b = bf16[16] fusion(%x), kind=kCustom, calls=%Start
  %e = bf16[16] fusion(%b), kind=kCustom, calls=%Done
  %start = s32[]"""
    text = LOOP.replace(dot, "fusion(%x), kind=kCustom, calls=%Step")
    text = text.replace("  %start = s32[]", ends)
    text += "".join(PART.replace("NAME", name) for name in ("Start", "Step", "Done"))
    assert text.count("calls=") == 3
    (found,) = hlo.costs(text, {"data": 1, "fsdp": 8}).collectives
    assert found == hlo.Collective("all-gather", "fsdp", 8, 32.0, 1)


def test_what_travels_between_slices_is_told_apart():
    text = """HloModule m

ENTRY %main (x: bf16[100]) -> bf16[100] {
  %x = bf16[100]{0} parameter(0)
  %after = token[] after-all()
  %s = (bf16[100]{0}, u32[], token[]) send(%x, %after), channel_id=1, is_host_transfer=true, """
    text += """frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}
  ROOT %y = bf16[100]{0} copy(%x)
}
"""
    (found,) = hlo.costs(text, {"data": 8}, slices=4).collectives
    assert found == hlo.Collective("all-reduce", "slices", 4, 200.0, 1)


def test_an_asynchronous_collective_counts_once_in_each_computation_that_has_it():
    part = "%g{0} = f32[64]{{0}} all-gather(%p), channel_id=3, replica_groups=[1,4]<=[4]"
    fusion = "%f{0} (p: f32[16]) -> f32[64] {{\n  %p = f32[16]{{0}} parameter(0)\n  ROOT " + part
    fusions = "\n\n".join(fusion.format(n) + "\n}" for n in range(3))
    text = f"""HloModule m

{fusions}

ENTRY %main (x: f32[16]) -> f32[64] {{
  %x = f32[16]{{0}} parameter(0)
  %a = f32[64]{{0}} fusion(%x), kind=kCustom, calls=%f0
  %b = f32[64]{{0}} fusion(%x), kind=kCustom, calls=%f1
  ROOT %c = f32[64]{{0}} fusion(%x), kind=kCustom, calls=%f2
}}
"""
    (found,) = hlo.costs(text, {"data": 4}).collectives
    assert found == hlo.Collective("all-gather", "data", 4, 256.0, 1)

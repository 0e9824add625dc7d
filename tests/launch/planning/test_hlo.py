"""Reading compiled text: shapes, loops, groups."""

import pytest

from launch.planning import hlo, memory, products, traffic

LOOP = """HloModule m, entry_computation_layout={(f32[4,8]{1,0:T(8,128)})->f32[4,8]{1,0:T(8,128)}}

%body (p: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %p = (s32[]{:T(128)}, f32[4,8]{1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %x = f32[4,8]{1,0:T(8,128)} get-tuple-element(%p), index=1
  %two = s32[]{:T(128)} constant(2)
  %next = s32[]{:T(128)} add(%i, %two)
  %y = f32[4,4]{1,0} dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={1}
  %z = f32[4,8]{1,0:T(8,128)} all-reduce(%x), channel_id=3, replica_groups=[2,2]<=[4]
  ROOT %out = (s32[]{:T(128)}, f32[4,8]{1,0:T(8,128)}) tuple(%next, %z)
}

%condition (q: (s32[], f32[4,8])) -> pred[] {
  %q = (s32[]{:T(128)}, f32[4,8]{1,0:T(8,128)}) parameter(0)
  %limit = s32[]{:T(128)} constant(12)
  %j = s32[]{:T(128)} get-tuple-element(%q), index=0
  ROOT %less = pred[]{:T(512)} compare(%j, %limit), direction=LT
}

%fused.1 (a: f32[4,8]) -> f32[4,8] {
  %a = f32[4,8]{1,0} parameter(0)
  ROOT %r1 = f32[4,8]{1,0} all-gather(%a), channel_id=7, replica_groups={{0,1},{2,3}}
}

%fused.2 (b: f32[4,8]) -> f32[4,8] {
  %b = f32[4,8]{1,0} parameter(0)
  ROOT %r2 = f32[4,8]{1,0} all-gather(%b), channel_id=7, replica_groups={{0,1},{2,3}}
}

ENTRY %main (arg: f32[4,8]) -> f32[4,8] {
  %arg = f32[4,8]{1,0:T(8,128)} parameter(0), metadata={op_name="state.params['w']"}
  %zero = s32[]{:T(128)} constant(0)
  %start = (s32[]{:T(128)}, f32[4,8]{1,0:T(8,128)}) tuple(%zero, %arg)
  %w = (s32[]{:T(128)}, f32[4,8]{1,0:T(8,128)}) while(%start), condition=%condition, body=%body
  %g = f32[4,8]{1,0:T(8,128)} get-tuple-element(%w), index=1
  %f1 = f32[4,8]{1,0:T(8,128)} fusion(%g), kind=kLoop, calls=%fused.1
  ROOT %f2 = f32[4,8]{1,0:T(8,128)} fusion(%f1), kind=kLoop, calls=%fused.2
}
"""


def test_a_loop_that_goes_up_by_two_turns_half_as_often():
    module = hlo.parse(LOOP)
    loop = module.computations["main"]["w"]
    assert module.trip_count(loop) == 6
    assert module.counts()["body"] == 6


def test_products_count_as_often_as_their_loop_turns():
    assert products.product_flops(hlo.parse(LOOP)) == 6 * 2 * 4 * 4 * 8


def test_a_channel_that_two_fusions_share_is_one_collective():
    found = {c.kind: c for c in traffic.collectives(hlo.parse(LOOP), 4)}
    assert found["all-gather"].times == 1
    assert found["all-reduce"].times == 6
    assert found["all-gather"].sent == 4 * 8 * 4 / 2
    assert found["all-reduce"].sent == 6 * 2 * 4 * 8 * 4 / 2


def test_arguments_are_known_by_name_and_padded_to_tiles():
    parts = memory.argument_parts(hlo.parse(LOOP))
    assert parts["parameters"] == 8 * 128 * 4


@pytest.mark.parametrize(
    "text, size",
    [
        ("f32[3,768]{1,0:T(4,128)}", 4 * 768 * 4),
        ("s32[]{:T(128)}", 128 * 4),
        ("bf16[3,768,192]{1,2,0:T(8,128)(2,1)}", 3 * 768 * 192 * 2),
        ("f32[5]{0}", 20),
    ],
)
def test_a_layout_says_how_large_an_array_is_in_memory(text, size):
    assert hlo.arrays(text)[0].padded_bytes == size


@pytest.mark.parametrize(
    "text, groups",
    [
        ("replica_groups={{0,2},{1,3}}, x", ((0, 2), (1, 3))),
        ("replica_groups={}, x", ((0, 1, 2, 3, 4, 5, 6, 7),)),
        ("replica_groups=[2,4]<=[8], x", ((0, 1, 2, 3), (4, 5, 6, 7))),
        ("replica_groups=[4,2]<=[2,4]T(1,0), x", ((0, 4), (1, 5), (2, 6), (3, 7))),
        ("replica_groups=mesh['a'=2,'b'=4] {'b'}, x", ((0, 1, 2, 3), (4, 5, 6, 7))),
        ("replica_groups=mesh['a'=2,'b'=4] {'a'}, x", ((0, 4), (1, 5), (2, 6), (3, 7))),
        (
            "replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}, x",
            ((0, 1, 2, 3), (4, 5, 6, 7)),
        ),
        ("source_target_pairs={{0,1},{1,0},{2,3},{3,2}}, x", ((0, 1), (2, 3))),
    ],
)
def test_groups_are_read_in_every_way_they_are_written(text, groups):
    assert traffic.groups(text, 8) == groups


def test_a_convolution_counts_only_what_meets_its_input():
    """A batched product as XLA for TPUs writes it: 16 x 4 of [64, 128] by [128, 64]."""
    text = (
        "  %c = f32[16,4,64,64]{2,3,1,0} convolution(%l, %r), "
        "window={size=16x4 stride=15x3 lhs_dilate=16x4}, dim_labels=0b1f_0o1i->01bf"
    )
    scope = "\n".join(
        [
            "ENTRY %main (l: bf16[16,64,4,128]) -> f32[16,4,64,64] {",
            "  %l = bf16[16,64,4,128]{3,2,1,0} parameter(0)",
            "  %r = bf16[16,64,4,128]{3,2,1,0} parameter(1)",
            text,
            "}",
        ]
    )
    assert products.product_flops(hlo.parse(scope)) == 2 * 16 * 4 * 64 * 64 * 128

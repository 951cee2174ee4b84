"""The formula of every metric in MathML."""

from __future__ import annotations

from typing import NamedTuple

from markupsafe import Markup

from exsel.diagnostics.metrics import METRICS


class Definition(NamedTuple):
    """What a metric is."""

    name: str
    title: str
    meaning: str
    formulas: list[Markup]


def definitions() -> list[Definition]:
    """Of every metric, in the catalogue's order."""
    return [
        Definition(each.name, each.title, each.meaning, [_math(part) for part in _FORMULAS[each.name]])
        for each in METRICS
    ]


def _math(content: str) -> Markup:
    return Markup(f'<math displaystyle="true">{content}</math>')


def _i(letter: str) -> str:
    return f"<mi>{letter}</mi>"


def _o(sign: str) -> str:
    return f"<mo>{sign}</mo>"


def _n(digits: str) -> str:
    return f"<mn>{digits}</mn>"


def _row(*parts: str) -> str:
    return f"<mrow>{''.join(parts)}</mrow>"


def _sub(base: str, *index: str) -> str:
    return f"<msub>{base}{_row(*index)}</msub>"


def _fraction(top: str, bottom: str) -> str:
    return f"<mfrac>{_row(top)}{_row(bottom)}</mfrac>"


def _norm(*parts: str) -> str:
    return _row(_o("‖"), *parts, _o("‖"))


def _hat(base: str) -> str:
    return f'<mover accent="true">{base}<mo>^</mo></mover>'


def _sum(under: str) -> str:
    return f"<munder><mo>∑</mo>{_row(under)}</munder>"


def _transposed(*parts: str) -> str:
    return f"<msup>{_row(*parts)}<mi>⊤</mi></msup>"


def _call(name: str, *parts: str) -> str:
    return _row(_i(name), _o("&#8289;"), _o("("), *parts, _o(")"))


_COMMA = _o(",")
_SPACE = '<mspace width=".8em"></mspace>'
_Y, _V, _Z = (_sub(_i(letter), _i("i")) for letter in "yvz")
_VJ = _sub(_i("v"), _i("j"))
_A = _sub(_i("a"), _i("i"), _i("j"))
_P = _sub(_i("p"), _i("j"))
_UNIT = _sub(_hat(_i("v")), _i("i"))
_M = _hat(_i("m"))
_W = _row(_i("W"), _o("="), _sub(_i("W"), _i("q")), f"<msubsup>{_i('W')}{_i('k')}<mi>⊤</mi></msubsup>")


def _cosine(first: str, second: str) -> str:
    return _call("cos", first, _COMMA, second)


def _without(vector: str) -> str:
    return _row(vector, _o("−"), _o("("), vector, _o("·"), _M, _o(")"), _M)


def _temperature(kind: str) -> str:
    return _row(
        _sub(_i("τ"), _i(kind)),
        _o("="),
        _call("tanh", _i("f"), _o("("), _i("x"), _o(")")),
        _o("+"),
        _n("1"),
        _o("+"),
        _i("σ"),
        _o("("),
        _i("a"),
        _o(")"),
        _i("ln"),
        _i("n"),
    )


_FORMULAS: dict[str, tuple[str, ...]] = {
    "similarity": (
        _row(_cosine(_Y, _V), _o("="), _fraction(_row(_Y, _o("·"), _V), _row(_norm(_Y), _norm(_V)))),
        _row(_Y, _o("="), _sum(_i("j")), _A, _VJ),
    ),
    "similarity_after": (
        _cosine(_Z, _V),
        _row(_Z, _o("="), _Y, _o("−"), _i("α"), _o("("), _Y, _o("·"), _UNIT, _o(")"), _UNIT),
    ),
    "value_similarity": (
        _row(
            _fraction(_n("1"), _row(_i("T"), _o("−"), _n("1"))),
            _sum(_row(_i("j"), _o("≠"), _i("i"))),
            _cosine(_V, _VJ),
        ),
    ),
    "centred_similarity": (
        _cosine(_without(_Y), _without(_V)),
        _row(_i("m"), _o("="), _fraction(_n("1"), _i("T")), _sum(_i("j")), _VJ),
    ),
    "self_weight": (_sub(_i("a"), _i("i"), _i("i")),),
    "spikiness": (
        _fraction(
            _sub(_norm(_i("p")), _n("1")), _row(f"<msubsup>{_norm(_i('p'))}{_n('2')}{_n('2')}</msubsup>", _i("L"))
        ),
    ),
    "entropy": (_row(_i("H"), _o("="), _o("−"), _sum(_i("j")), _P, _i("ln"), _P),),
    "effective_tokens": (_row(_i("exp"), _o("&#8289;"), _i("H")),),
    "sink_mass": (_row(_sub(_i("a"), _i("i"), _n("1")), _COMMA, _SPACE, _i("i"), _o("&gt;"), _n("1")),),
    "query_temperature": (_temperature("q"),),
    "key_temperature": (_temperature("k"),),
    "value_temperature": (_temperature("v"),),
    "token_norm": (_row(_norm(_transposed(_i("W")), _i("x")), _COMMA, _SPACE, _W),),
    "operator_norm": (
        _row(
            _norm(_i("W")),
            _o("="),
            f"<munder><mi>max</mi>{_row(_norm(_i('u')), _o('='), _n('1'))}</munder>",
            _norm(_transposed(_i("W")), _i("u")),
        ),
    ),
}

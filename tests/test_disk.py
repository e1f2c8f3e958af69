"""The one spelling of JSON is the standard library's, whatever the document."""

import json

from hypothesis import given
from hypothesis import strategies as st

from trajkit.disk import canonical_json

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=True),
    st.text(st.characters(exclude_categories=["Cs"])),
)
DOCUMENTS = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner),
        st.tuples(inner),
        st.dictionaries(st.text('aé\n"', max_size=3), inner),
        st.dictionaries(st.integers(), inner),
    ),
    max_leaves=30,
)


@given(DOCUMENTS)
def test_canonical_json_is_the_standard_librarys(document: object) -> None:
    expected = json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    assert canonical_json(document) == expected.encode()

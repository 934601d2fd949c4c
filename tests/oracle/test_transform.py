"""Vector transforms against plain numpy."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from sklearn.linear_model import Ridge

from aotoolkit.errors import CorruptedFileError, NonFiniteError
from aotoolkit.oracle.transform import (
    MAPPING_RIDGE,
    RECALL_SHARPNESS,
    SHRINKAGE,
    TOKEN_MAPPING_RIDGE,
    TRANSFORM_FILE,
    WHITENING_RIDGE,
    MappedExample,
    VectorTransform,
    fit_mapping,
    fit_mapping_by_token,
    fit_transform,
)

LAYERS, VOCABULARY, WIDTH = (2, 5), 7, 4


def batches(seed=0, count=6):
    generator = torch.Generator().manual_seed(seed)
    result = []
    for _ in range(count):
        ids = torch.randint(VOCABULARY - 1, (9,), generator=generator).tolist()
        result.append((torch.randn(len(LAYERS), 9, WIDTH, generator=generator) + 3, ids))
    return result


def fit(kind):
    return fit_transform(kind, batches(), layers=LAYERS, vocabulary_size=VOCABULARY)


def flat(layer):
    return np.concatenate([vectors[layer].double().numpy() for vectors, _ in batches()])


def test_centring_by_layer_takes_away_the_mean():
    vectors, ids = batches(1)[0]
    ours = fit("centred_by_layer").apply(vectors, layers=LAYERS, token_ids=ids)
    for row in range(len(LAYERS)):
        expected = vectors[row].numpy() - flat(row).mean(0)
        np.testing.assert_allclose(ours[row].numpy(), expected, atol=1e-5)


def test_centring_by_token_takes_away_the_shrunk_mean_of_the_token():
    vectors, ids = batches(1)[0]
    ours = fit("centred_by_token").apply(vectors, layers=LAYERS, token_ids=ids)
    seen = np.concatenate([np.array(ids) for _, ids in batches()])
    for row in range(len(LAYERS)):
        everything = flat(row)
        for column, token in enumerate(ids):
            own = everything[seen == token]
            total = own.sum(0) + SHRINKAGE * everything.mean(0)
            expected = vectors[row, column].numpy() - total / (len(own) + SHRINKAGE)
            np.testing.assert_allclose(ours[row, column].numpy(), expected, atol=5e-3)


def test_a_token_never_seen_is_centred_by_its_layer():
    vectors = torch.randn(2, 1, WIDTH)
    ours = fit("centred_by_token").apply(vectors, layers=LAYERS, token_ids=[VOCABULARY - 1])
    layer = fit("centred_by_layer").apply(vectors, layers=LAYERS, token_ids=[VOCABULARY - 1])
    torch.testing.assert_close(ours, layer, atol=5e-3, rtol=0)


def test_whitened_vectors_have_the_identity_as_covariance():
    transform = fit("whitened")
    for row, layer in enumerate(LAYERS):
        vectors = torch.tensor(flat(row), dtype=torch.float32)[None]
        white = transform.apply(vectors, layers=[layer], token_ids=[0] * vectors.shape[1])[0]
        covariance = np.cov(white.numpy().T, bias=True)
        np.testing.assert_allclose(covariance, np.eye(WIDTH), atol=20 * WHITENING_RIDGE)


def test_none_is_the_identity():
    vectors, ids = batches()[0]
    assert VectorTransform().apply(vectors, layers=LAYERS, token_ids=ids) is vectors


@pytest.mark.parametrize("kind", ["centred_by_layer", "centred_by_token"])
def test_the_mean_cancels_in_a_difference(kind):
    vectors, ids = batches()[0]
    ours = fit(kind).apply(vectors, layers=LAYERS, token_ids=ids, difference=True)
    torch.testing.assert_close(ours, vectors)


def test_whitening_a_difference_equals_the_difference_of_the_whitened():
    (first, ids), (second, _) = batches()[:2]
    transform = fit("whitened")
    options = {"layers": LAYERS, "token_ids": ids}
    torch.testing.assert_close(
        transform.apply(first - second, difference=True, **options),
        transform.apply(first, **options) - transform.apply(second, **options),
        atol=1e-4,
        rtol=1e-4,
    )


@given(st.sampled_from(["centred_by_layer", "centred_by_token", "whitened"]))
def test_one_layer_alone_is_transformed_as_among_others(kind):
    vectors, ids = batches()[0]
    transform = fit(kind)
    together = transform.apply(vectors, layers=LAYERS, token_ids=ids)
    alone = transform.apply(vectors[1:], layers=LAYERS[1:], token_ids=ids)
    torch.testing.assert_close(together[1:], alone)


@pytest.mark.parametrize("kind", ["none", "centred_by_layer", "centred_by_token", "whitened"])
def test_saved_and_loaded_it_is_the_same(kind, tmp_path):
    transform = fit(kind)
    transform.save(tmp_path)
    loaded = VectorTransform.load(tmp_path)
    assert (loaded.kind, loaded.layers) == (transform.kind, transform.layers)
    assert loaded.digest == transform.digest
    vectors, ids = batches()[0]
    torch.testing.assert_close(
        loaded.apply(vectors, layers=LAYERS, token_ids=ids),
        transform.apply(vectors, layers=LAYERS, token_ids=ids),
    )


def examples(count=40, noise=0.0):
    """Spans of vectors whose mean holds the answer's embedding, turned and shifted."""
    generator = torch.Generator().manual_seed(3)
    turn = torch.randn(len(LAYERS), WIDTH, WIDTH, generator=generator)
    result = []
    for index in range(count):
        vectors = torch.randn(len(LAYERS), 1 + index % 5, WIDTH, generator=generator)
        answer = (vectors.mean(1)[0] @ turn[0]) + noise * torch.randn(WIDTH, generator=generator)
        result.append((vectors + 7, answer))
    return result, turn


def test_a_map_is_ridge_regression_on_standardised_means():
    pairs, _ = examples(noise=0.5)
    transform = fit_mapping(pairs, layers=LAYERS)
    targets = np.stack([answer.double().numpy() for _, answer in pairs])
    for row, layer in enumerate(LAYERS):
        means = np.stack([vectors[row].double().mean(0).numpy() for vectors, _ in pairs])
        centre, scale = means.mean(0), means.std(0)
        ridge = Ridge(alpha=MAPPING_RIDGE * len(pairs)).fit((means - centre) / scale, targets)
        new = torch.randn(1, 3, WIDTH)
        ours = transform.apply(new, layers=[layer], token_ids=[0, 1, 2])[0]
        expected = ridge.predict((new[0].numpy() - centre) / scale) - targets.mean(0)
        np.testing.assert_allclose(ours.numpy(), expected, atol=1e-4)


def test_a_map_takes_each_position_to_its_part_of_the_answer():
    pairs, _ = examples(count=4000)
    transform = fit_mapping(pairs, layers=LAYERS)
    vectors, answer = pairs[3]
    parts = transform.apply(vectors, layers=LAYERS, token_ids=[0] * vectors.shape[1])[0]
    # The ridge draws it in by about its own share.
    torch.testing.assert_close(parts.mean(0), answer, atol=0.2, rtol=4 * MAPPING_RIDGE)


def fit_by_token(pairs, ids, kind="mapped_by_token", keys=None):
    given = [
        MappedExample(vectors, own, answer, answer if keys is None else keys[number])
        for number, ((vectors, answer), own) in enumerate(zip(pairs, ids, strict=True))
    ]
    return fit_mapping_by_token(kind, given, layers=LAYERS, vocabulary_size=VOCABULARY)


def ids_of(pairs, seed=4):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randint(VOCABULARY - 1, (vectors.shape[1],), generator=generator).tolist()
        for vectors, _ in pairs
    ]


def test_a_map_by_token_is_one_ridge_regression_of_state_and_token():
    pairs, _ = examples(noise=0.5)
    ids = ids_of(pairs)
    transform = fit_by_token(pairs, ids)
    targets = np.stack([answer.double().numpy() for _, answer in pairs])
    table = transform.token_mean.double().numpy()
    new, new_ids = torch.randn(1, 3, WIDTH), [0, 3, VOCABULARY - 1]
    for row, layer in enumerate(LAYERS):
        tokens = np.stack([table[row][i].mean(0) for i in ids])
        means = np.stack([vectors[row].double().mean(0).numpy() for vectors, _ in pairs])
        features = np.concatenate([means - tokens, tokens - tokens.mean(0)], 1)
        scale = np.sqrt((features**2).mean(0))
        ridge = Ridge(alpha=TOKEN_MAPPING_RIDGE * len(pairs), fit_intercept=False)
        ridge.fit(features / scale, targets - targets.mean(0))
        read = [new[0].numpy() - table[row][new_ids], table[row][new_ids] - tokens.mean(0)]
        ours = transform.apply(new, layers=[layer], token_ids=new_ids)[0]
        expected = ridge.predict(np.concatenate(read, 1) / scale)
        np.testing.assert_allclose(ours.numpy(), expected, atol=1e-4)


def test_a_map_by_token_finds_a_token_and_a_state_where_one_map_must_choose():
    """What stands there counts one way, what is beyond it the other way."""
    generator = torch.Generator().manual_seed(5)
    tokens = 2 * torch.randn(VOCABULARY - 1, WIDTH, generator=generator)
    pairs, ids = [], []
    for index in range(3000):
        count = 1 if index % 2 else 12
        here = torch.randint(VOCABULARY - 1, (count,), generator=generator)
        state = torch.randn(WIDTH, generator=generator)
        vectors = (tokens[here] + state).expand(len(LAYERS), -1, -1)
        pairs.append((vectors, tokens[here].mean(0) - tokens.mean(0) - state))
        ids.append(here.tolist())

    def error(transform):
        wrong = [
            transform.apply(vectors, layers=LAYERS, token_ids=i)[0].mean(0) - answer
            for (vectors, answer), i in zip(pairs, ids, strict=True)
        ]
        return float(torch.stack(wrong).square().mean())

    assert error(fit_by_token(pairs, ids)) < 0.05 * error(fit_mapping(pairs, layers=LAYERS))


def test_a_map_by_token_of_a_difference_is_the_difference_of_the_maps():
    pairs, _ = examples()
    transform = fit_by_token(pairs, ids_of(pairs))
    first, second = torch.randn(2, len(LAYERS), 3, WIDTH)
    options = {"layers": LAYERS, "token_ids": [0, 1, 2]}
    torch.testing.assert_close(
        transform.apply(first - second, difference=True, **options),
        transform.apply(first, **options) - transform.apply(second, **options),
        atol=1e-4,
        rtol=1e-4,
    )


@pytest.mark.parametrize("kind", ["mapped_by_token", "mapped_pooled", "mapped_recalled"])
def test_a_map_by_token_is_stored_whole(kind, tmp_path):
    pairs, _ = examples()
    transform = fit_by_token(pairs, ids_of(pairs), kind)
    transform.save(tmp_path)
    loaded = VectorTransform.load(tmp_path)
    assert loaded.kind == kind
    assert loaded.digest == transform.digest
    vectors, options = torch.randn(len(LAYERS), 3, WIDTH), {"token_ids": [0, 1, 2]}
    assert torch.equal(
        loaded.apply(vectors, layers=LAYERS, **options),
        transform.apply(vectors, layers=LAYERS, **options),
    )


def pooled_and_not():
    pairs, _ = examples()
    return (
        fit_by_token(pairs, ids_of(pairs), kind) for kind in ("mapped_pooled", "mapped_by_token")
    )


def test_pooled_each_vector_is_halfway_to_the_mean_at_its_own_length():
    pooled, plain = pooled_and_not()
    vectors, ids = torch.randn(len(LAYERS), 4, WIDTH), [0, 1, 2, 2]
    ours = pooled.apply(vectors, layers=LAYERS, token_ids=ids).numpy()
    mapped = plain.apply(vectors, layers=LAYERS, token_ids=ids).numpy()
    for row in range(len(LAYERS)):
        mean = mapped[row].mean(0)
        direction = mean / np.linalg.norm(mean)
        for column, own in enumerate(mapped[row]):
            expected = (own + np.linalg.norm(own) * direction) / 2
            np.testing.assert_allclose(ours[row, column], expected, atol=1e-4)


@given(st.permutations(range(4)))
def test_pooled_the_order_of_positions_does_not_matter(order):
    pooled, _ = pooled_and_not()
    vectors, ids = torch.randn(len(LAYERS), 4, WIDTH), torch.tensor([0, 1, 2, 2])
    ours = pooled.apply(vectors, layers=LAYERS, token_ids=ids.tolist())
    moved = pooled.apply(vectors[:, order], layers=LAYERS, token_ids=ids[order].tolist())
    torch.testing.assert_close(moved, ours[:, order], atol=1e-4, rtol=1e-4)


def test_pooled_one_vector_alone_stays_and_nothing_stays_nothing():
    pooled, plain = pooled_and_not()
    options = {"layers": LAYERS, "token_ids": [3]}
    alone = torch.randn(len(LAYERS), 1, WIDTH)
    torch.testing.assert_close(pooled.apply(alone, **options), plain.apply(alone, **options))
    several = {"layers": LAYERS, "token_ids": [0, 1, 2, 2]}
    vectors = torch.randn(len(LAYERS), 4, WIDTH)
    apart = pooled.apply(vectors, alone=True, **several)
    assert torch.equal(apart, plain.apply(vectors, **several))
    assert not torch.allclose(apart, pooled.apply(vectors, **several))
    nothing = torch.zeros(len(LAYERS), 5, WIDTH)
    options = {"layers": LAYERS, "token_ids": [0] * 5, "difference": True}
    assert not pooled.apply(nothing, **options).any()


RECALLED = "mapped_recalled"


def recalled_and_not(*, times=1):
    """Fitted to a dozen answers, each of many examples, in one transform and without recall."""
    pairs, _ = examples(count=36)
    answers, keys = torch.randn(2, 12, WIDTH, generator=torch.Generator().manual_seed(7))
    pairs = [(vectors, answers[i % 12]) for i, (vectors, _) in enumerate(pairs * times)]
    own = [keys[i % 12] for i in range(len(pairs))]
    recalled, plain = (
        fit_by_token(pairs, ids_of(pairs), kind, own)
        for kind in ("mapped_recalled", "mapped_by_token")
    )
    centre = torch.stack([answer for _, answer in pairs]).mean(0)
    return recalled, plain, answers - centre, keys - torch.stack(own).mean(0), pairs


def unit(values):
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


def test_recalled_the_answer_whose_key_the_mean_is_most_like_is_added_at_each_length():
    recalled, plain, answers, keys, pairs = recalled_and_not()
    vectors, ids = torch.randn(len(LAYERS), 4, WIDTH), [0, 1, 2, 2]
    ours = recalled.apply(vectors, layers=LAYERS, token_ids=ids).numpy()
    mapped = plain.apply(vectors, layers=LAYERS, token_ids=ids).numpy()
    patterns, found_by = unit(answers.numpy()), unit(keys.numpy())
    fitted = [
        (index % 12, plain.apply(one, layers=LAYERS, token_ids=own).mean(1).numpy())
        for index, ((one, _), own) in enumerate(zip(pairs, ids_of(pairs), strict=True))
        if one.shape[1] > 1
    ]
    for row in range(len(LAYERS)):
        scores = []
        for number, key in enumerate(found_by):
            others = [unit(one[row]) @ key for about, one in fitted if about != number]
            cosine = unit(mapped[row].mean(0)) @ key
            scores.append((cosine - np.mean(others)) / np.sqrt(np.std(others)))
        weights = np.exp(RECALL_SHARPNESS * np.array(scores))
        direction = (weights[:, None] * patterns).sum(0) / weights.sum()
        for column, own in enumerate(mapped[row]):
            expected = (own + np.linalg.norm(own) * direction) / 2
            np.testing.assert_allclose(ours[row, column], expected, atol=1e-4)


def test_a_key_that_is_like_everything_is_recalled_no_sooner_than_others():
    """An answer towards which the map leans, whatever it is given: a hub."""
    recalled, *_ = recalled_and_not()
    hub = dataclasses.replace(
        recalled,
        answers=torch.eye(WIDTH)[:2],
        keys=torch.nn.functional.normalize(torch.eye(WIDTH)[:2] + torch.eye(WIDTH)[2], dim=-1),
        key_mean=torch.tensor([[0.6, 0.1]]).expand(len(LAYERS), 2),
        key_spread=torch.full((len(LAYERS), 2), 0.1),
    )
    like_both = (torch.eye(WIDTH)[0] * 1.2 + torch.eye(WIDTH)[1] + torch.eye(WIDTH)[2])[None, None]
    assert hub._recalled_by_key(like_both, torch.tensor([0]))[0, 0, 1] > 0.99
    flat = dataclasses.replace(hub, key_mean=torch.zeros(len(LAYERS), 2))
    assert flat._recalled_by_key(like_both, torch.tensor([0]))[0, 0, 0] > 0.5


def test_a_key_is_compared_with_texts_about_other_answers_and_not_with_single_vectors():
    pairs, _ = examples(count=36)
    answers = torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(7))
    pairs = [(vectors, answers[i % 4]) for i, (vectors, _) in enumerate(pairs)]
    single = [(vectors[:, :1], answer) for vectors, answer in pairs[:12]]
    both, spans = pairs + single, fit_by_token(pairs + single, ids_of(pairs + single), RECALLED)
    mapped = [
        torch.nn.functional.normalize(
            spans.as_trained.apply(vectors, layers=LAYERS, token_ids=own, alone=True).mean(1),
            dim=-1,
        )
        for (vectors, _), own in zip(both, ids_of(both), strict=True)
    ]
    for number in range(4):
        told = torch.nn.functional.normalize(
            answers[number] - torch.stack([answer for _, answer in both]).mean(0), dim=0
        )
        index = int((spans.answers @ told).argmax())
        others = [m for i, m in enumerate(mapped) if i % 4 != number and both[i][0].shape[1] > 1]
        cosines = torch.stack(others) @ spans.keys[index]
        torch.testing.assert_close(spans.key_mean[:, index], cosines.mean(0), atol=1e-4, rtol=0)
        expected = cosines.std(0, correction=0)
        torch.testing.assert_close(spans.key_spread[:, index], expected, atol=1e-4, rtol=0)


def test_one_answer_alone_says_nothing_and_nothing_is_recalled():
    """It is its own mean: there is nothing to compare it with."""
    pairs, _ = examples(count=8)
    pairs = [(vectors, torch.ones(WIDTH)) for vectors, _ in pairs]
    one = fit_by_token(pairs, ids_of(pairs), RECALLED)
    options = {"layers": LAYERS, "token_ids": [0, 1, 2]}
    vectors = torch.randn(len(LAYERS), 3, WIDTH)
    asked = one.apply(vectors, **options)
    torch.testing.assert_close(asked, one.as_trained.apply(vectors, alone=True, **options) / 2)


def test_recalled_by_key_is_by_what_is_known_of_the_layers_that_are_read():
    recalled, *_ = recalled_and_not()
    vectors, ids = torch.randn(len(LAYERS), 4, WIDTH), [0, 1, 2, 2]
    whole = recalled.apply(vectors, layers=LAYERS, token_ids=ids)
    turned = recalled.apply(vectors.flip(0), layers=LAYERS[::-1], token_ids=ids)
    torch.testing.assert_close(turned.flip(0), whole)
    for row, layer in enumerate(LAYERS):
        one = recalled.apply(vectors[row : row + 1], layers=[layer], token_ids=ids)
        torch.testing.assert_close(one, whole[row : row + 1])
    swapped = dataclasses.replace(
        recalled, key_mean=recalled.key_mean.flip(0) + 0.2, key_spread=recalled.key_spread.flip(0)
    )
    other = swapped.apply(vectors, layers=LAYERS, token_ids=ids)
    assert not torch.allclose(other, whole, atol=1e-3)


def test_a_file_of_before_there_were_keys_says_what_to_do(tmp_path):
    recalled, *_ = recalled_and_not()
    recalled.save(tmp_path)
    path = tmp_path / TRANSFORM_FILE
    kept = {k: v for k, v in load_file(path).items() if not k.startswith("key")}
    save_file(kept, path, metadata={"kind": RECALLED, "layers": ",".join(map(str, LAYERS))})
    with pytest.raises(CorruptedFileError, match=r"needs key_mean.*earlier version.*fitted again"):
        VectorTransform.load(tmp_path)
    path.write_bytes(b"no tensors")
    with pytest.raises(CorruptedFileError, match="does not hold the statistics"):
        VectorTransform.load(tmp_path)


def test_answers_are_as_many_as_keys_and_figures_of_them():
    recalled, *_ = recalled_and_not()
    for name in ("answers", "keys"):
        with pytest.raises(ValueError, match=r"There are \[11, 12\] answers, keys and figures"):
            dataclasses.replace(recalled, **{name: getattr(recalled, name)[1:]})
    with pytest.raises(ValueError, match=r"There are \[11, 12\]"):
        dataclasses.replace(recalled, key_spread=recalled.key_spread[:, 1:])


def test_recalled_an_answer_once_however_often_it_was_fitted_to():
    (once, *_), (thrice, *_) = recalled_and_not(), recalled_and_not(times=3)
    assert once.answers.shape == thrice.answers.shape == (12, WIDTH)
    torch.testing.assert_close(once.answers, thrice.answers)
    torch.testing.assert_close(once.answers.norm(dim=1), torch.ones(12))


@given(st.integers(0, WIDTH - 1), st.floats(1e-3, 1e3))
def test_recalled_an_answer_is_itself_at_any_length_and_the_less_it_is_like_one_the_less(
    index, length
):
    recalled, *_ = recalled_and_not()
    none, same = torch.zeros(len(LAYERS), WIDTH), torch.full((len(LAYERS), WIDTH), 0.2)
    recalled = dataclasses.replace(
        recalled, answers=torch.eye(WIDTH), keys=torch.eye(WIDTH), key_mean=none, key_spread=same
    )
    vectors = torch.stack([torch.eye(WIDTH)[index], torch.ones(WIDTH)]) * length
    for itself, like_all in (
        recalled._recalled_by_key(vectors[None], torch.tensor([0]))[0],
        recalled._recalled_by_answer(vectors[None])[0],
    ):
        torch.testing.assert_close(itself, torch.eye(WIDTH)[index], atol=1e-3, rtol=0)
        torch.testing.assert_close(like_all, torch.full((WIDTH,), 1 / WIDTH))


def test_recalled_by_one_vector_is_the_answer_that_it_is_most_like_whatever_the_keys():
    recalled, plain, answers, *_ = recalled_and_not()
    vectors = torch.randn(len(LAYERS), 1, WIDTH)
    ours = recalled.apply(vectors, layers=LAYERS, token_ids=[3]).numpy()
    mapped = plain.apply(vectors, layers=LAYERS, token_ids=[3]).numpy()
    patterns = unit(answers.numpy())
    for row in range(len(LAYERS)):
        weights = np.exp(RECALL_SHARPNESS * (patterns @ unit(mapped[row, 0])))
        direction = (weights[:, None] * patterns).sum(0) / weights.sum()
        expected = (mapped[row, 0] + np.linalg.norm(mapped[row, 0]) * direction) / 2
        np.testing.assert_allclose(ours[row, 0], expected, atol=1e-4)


def test_recalled_alone_is_by_each_vector_and_nothing_stays_nothing():
    recalled, plain, *_ = recalled_and_not()
    vectors, ids = torch.randn(len(LAYERS), 4, WIDTH), [0, 1, 2, 2]
    apart = recalled.apply(vectors, layers=LAYERS, token_ids=ids, alone=True)
    for position, token in enumerate(ids):
        one = vectors[:, position : position + 1]
        by_itself = recalled.apply(one, layers=LAYERS, token_ids=[token])
        torch.testing.assert_close(apart[:, position : position + 1], by_itself)
        assert not torch.allclose(by_itself, plain.apply(one, layers=LAYERS, token_ids=[token]))
    nothing = torch.zeros(len(LAYERS), 5, WIDTH)
    options = {"layers": LAYERS, "token_ids": [0] * 5, "difference": True}
    assert not recalled.apply(nothing, **options).any()


def test_recalled_with_another_sharpness_it_is_another_transform(monkeypatch):
    recalled, plain, *_ = recalled_and_not()
    before = recalled.digest, plain.digest
    monkeypatch.setattr("aotoolkit.oracle.transform.RECALL_SHARPNESS", 21.0)
    assert recalled.digest != before[0]
    assert plain.digest == before[1]


def test_recalled_nothing_is_while_an_oracle_learns():
    pairs, _ = examples(count=36)
    pooled = fit_by_token(pairs, ids_of(pairs), "mapped_pooled")
    recalled = fit_by_token(pairs, ids_of(pairs), "mapped_recalled")
    assert recalled.as_trained.digest == pooled.digest != recalled.digest
    assert pooled.as_trained is pooled


def test_recalled_needs_the_answers_and_what_they_are_found_by():
    recalled, plain, *_ = recalled_and_not()
    for name in ("answers", "keys"):
        with pytest.raises(ValueError, match=f"'mapped_recalled' without {name}"):
            dataclasses.replace(recalled, **{name: None})
        with pytest.raises(ValueError, match=f"'mapped_by_token' with {name}"):
            dataclasses.replace(plain, **{name: getattr(recalled, name)})
    for name in ("key_mean", "key_spread"):
        with pytest.raises(ValueError, match=f"needs {name} for each of the layers"):
            dataclasses.replace(recalled, **{name: None})


def test_a_map_by_token_needs_examples_that_are_finite():
    with pytest.raises(ValueError, match="at least one"):
        fit_by_token([], [])
    pairs, _ = examples(count=3)
    pairs[1][0][0, 0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match="to fit the map on"):
        fit_by_token(pairs, ids_of(pairs))
    mean, table, mapping = (
        torch.zeros(1, WIDTH),
        torch.zeros(1, VOCABULARY, WIDTH),
        torch.zeros(1, WIDTH, WIDTH),
    )
    with pytest.raises(ValueError, match="needs token_mapping"):
        VectorTransform("mapped_by_token", (1,), mean, token_mean=table, mapping=mapping)


def test_a_map_of_a_difference_is_the_difference_of_the_maps():
    pairs, _ = examples()
    transform = fit_mapping(pairs, layers=LAYERS)
    first, second = torch.randn(2, len(LAYERS), 3, WIDTH)
    options = {"layers": LAYERS, "token_ids": [0, 1, 2]}
    torch.testing.assert_close(
        transform.apply(first - second, difference=True, **options),
        transform.apply(first, **options) - transform.apply(second, **options),
        atol=1e-4,
        rtol=1e-4,
    )


def test_a_map_needs_examples_that_are_finite():
    with pytest.raises(ValueError, match="at least one"):
        fit_mapping([], layers=LAYERS)
    pairs, _ = examples(count=3)
    pairs[1][0][0, 0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match="to fit the map on"):
        fit_mapping(pairs, layers=LAYERS)
    with pytest.raises(ValueError, match="needs mapping"):
        VectorTransform("mapped", (1,), torch.zeros(1, WIDTH))


def test_a_map_saved_and_loaded_is_the_same(tmp_path):
    transform = fit_mapping(examples()[0], layers=LAYERS)
    transform.save(tmp_path)
    loaded = VectorTransform.load(tmp_path)
    assert loaded.kind == "mapped"
    assert loaded.digest == transform.digest


def test_the_digest_changes_with_a_statistic():
    transform = fit("centred_by_layer")
    moved = VectorTransform(transform.kind, transform.layers, transform.mean + 1e-3)
    assert moved.digest != transform.digest


def test_a_layer_without_statistics_is_an_error():
    with pytest.raises(ValueError, match=r"layer \[3\].*fitted on \[2, 5\]"):
        fit("whitened").apply(torch.randn(1, 1, WIDTH), layers=[3], token_ids=[0])


def test_wrong_shapes_and_kinds_are_errors():
    with pytest.raises(ValueError, match=r"expected \[l p d\]"):
        fit("whitened").apply(torch.randn(2, 3, WIDTH), layers=LAYERS, token_ids=[0])
    with pytest.raises(ValueError, match="Unknown vector transform"):
        VectorTransform("centered")
    with pytest.raises(ValueError, match="needs mean"):
        VectorTransform("centred_by_layer", (1,))


def test_nothing_to_gather_from_is_an_error():
    with pytest.raises(ValueError, match="at least one batch"):
        fit_transform("whitened", [], layers=LAYERS, vocabulary_size=VOCABULARY)


def test_a_token_mean_beyond_half_precision_is_kept():
    vectors = torch.ones(1, 40, WIDTH)
    vectors[0, :, 0] = 1e5
    many = [(vectors, [3] * 40)]
    transform = fit_transform("centred_by_token", many, layers=(2,), vocabulary_size=VOCABULARY)
    assert transform.apply(vectors, layers=[2], token_ids=[3] * 40).abs().max() < 1
    assert fit("centred_by_token").token_mean.dtype == torch.float16


@pytest.mark.parametrize("kind", ["centred_by_layer", "centred_by_token", "whitened"])
def test_statistics_of_what_is_not_finite_are_an_error(kind):
    vectors = torch.randn(1, 3, WIDTH)
    vectors[0, 1, 0] = torch.inf
    with pytest.raises(NonFiniteError, match=kind):
        fit_transform(kind, [(vectors, [0, 1, 2])], layers=(2,), vocabulary_size=VOCABULARY)


@pytest.mark.parametrize("kind", ["centred_by_layer", "whitened"])
def test_only_what_the_transform_needs_is_held(kind):
    # A table of this vocabulary would take terabytes.
    transform = fit_transform(kind, batches(), layers=LAYERS, vocabulary_size=10**11)
    assert transform.digest == fit(kind).digest


def test_token_means_are_those_of_one_table_bit_for_bit():
    total = torch.zeros(len(LAYERS), VOCABULARY, WIDTH, dtype=torch.double)
    count = torch.zeros(VOCABULARY, dtype=torch.double)
    for vectors, ids in batches():
        total.index_add_(1, torch.tensor(ids), vectors.double())
        count.index_add_(0, torch.tensor(ids), torch.ones(len(ids), dtype=torch.double))
    mean = total.sum(1) / count.sum()
    expected = (total + SHRINKAGE * mean[:, None]) / (count[None, :, None] + SHRINKAGE)
    assert torch.equal(fit("centred_by_token").token_mean, expected.half())

"""What a probe says of classes that it finds all but impossible."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from aotoolkit.evals.baselines.probe import log_probabilities


@pytest.mark.parametrize("classes", [2, 5])
def test_log_probabilities_are_those_of_scikit_learn_and_finite_beyond_float32(classes):
    rng = np.random.default_rng(0)
    labels = np.arange(classes).repeat(20)
    features = rng.normal(size=(len(labels), 6)).astype(np.float32)
    features[:, 0] += labels
    fitted = make_pipeline(StandardScaler(), LogisticRegression(C=1e3, max_iter=2000)).fit(
        features, labels
    )
    expected = np.log(fitted.predict_proba(features.astype(np.float64)))
    np.testing.assert_allclose(log_probabilities(fitted, features), expected, rtol=1e-6, atol=1e-9)
    far = features * np.float32(1e3)
    found = log_probabilities(fitted, far)
    assert np.isfinite(found).all()
    assert found.min() < -200, "beyond what float32 can say"
    assert (fitted.classes_[found.argmax(1)] == fitted.predict(far.astype(np.float64))).all()

"""The service keeps what its OpenAPI document says, for inputs that nobody thought of."""

from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from shared.serving.app import create_app
from tests.shared.serving.brightness import BrightnessPrediction, BrightnessPredictor
from tests.shared.serving.conftest import CONFIG, Running, picture, running

schemathesis.openapi.format("binary", st.sampled_from([picture(0.1), picture(0.5, kind="BMP")]))


with pytest.MonkeyPatch.context() as patch:
    patch.setenv("FOVEA_API_KEY", "right-key")
    DOCUMENT = create_app(BrightnessPredictor, CONFIG, media_types=BrightnessPrediction.media_types).openapi()
# Too many files are 413 here, which the check does not count as a refusal by default.
REFUSALS = ["400", "401", "404", "405", "406", "413", "415", "422"]
SETTINGS = schemathesis.Config.from_dict(
    {
        "checks": {"negative_data_rejection": {"expected-statuses": REFUSALS}},
        "auth": {"openapi": {"HTTPBearer": {"bearer": "right-key"}}},
    }
)
API = schemathesis.openapi.from_dict(DOCUMENT, config=SETTINGS)


@pytest.fixture(scope="module")
def locked_service() -> Iterator[Running]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FOVEA_API_KEY", "right-key")
        with running() as service:
            yield service


@API.parametrize()
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_the_service_keeps_its_openapi_document(case: schemathesis.Case, locked_service: Running) -> None:
    case.call_and_validate(base_url=locked_service.url)


def test_the_document_shows_examples_and_every_error() -> None:
    post = DOCUMENT["paths"]["/v1/predictions"]["post"]
    assert set(post["responses"]) == {"200", "400", "401", "406", "408", "409", "413", "415", "422", "429", "500", "503", "504"}
    assert set(post["responses"]["200"]["content"]) == {"application/json", "image/png", "image/tiff"}
    assert DOCUMENT["components"]["schemas"]["PredictionsAnswer"]["example"]["results"]
    assert DOCUMENT["components"]["schemas"]["ModelAnswer"]["example"]["card"]
    assert "curl" in post["x-codeSamples"][0]["source"]

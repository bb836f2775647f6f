"""An HTTP service, and a small web page, around any Predictor."""

"""Measures of a model or an ensemble: arrays in, frozen values out. No model, no device and no file is touched here."""

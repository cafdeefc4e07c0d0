"""Qwen2.5-Omni: load, prompt, prepare inputs, build a tiny one, export. Importing anything here mends the libraries."""

from migr.omni.companions import install

install()

"""Sliders around a callable, and a mask painted with the mouse."""

from .painting import paint
from .sliders import Panel, explore

__all__ = ["Panel", "explore", "paint"]

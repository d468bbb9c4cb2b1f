"""Metrics in other systems' forms: each module small, its dependency imported lazily."""

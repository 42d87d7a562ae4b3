"""Sections of a run's page: each module draws plots and tables about one subject."""

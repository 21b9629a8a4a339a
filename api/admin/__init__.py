"""Operations of operators: they need the `admin` scope."""

"""Operations over models and task vectors: one pipeline, of which a paper is a setting."""

def round_with_feedback(*a):
    raise NotImplementedError

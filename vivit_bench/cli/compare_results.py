EXAMPLES=""
def compare_results()->None:
    """X"""

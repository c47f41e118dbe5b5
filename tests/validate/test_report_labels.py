"""Labels of points in a scatter plot."""

from onnxprune.validate.report_labels import label_positions


def test_points_apart_have_their_labels_above() -> None:
    points = [(0.2, 0.9, 10), (0.5, 0.8, 10), (0.8, 0.7, 10)]
    assert label_positions(points, [], []) == ["top center"] * 3


def test_labels_of_points_close_together_go_to_the_sides() -> None:
    """Runs of one sparsity: a column of points, each closer to the next than a label is high."""
    points = [(0.9, 0.80 + 0.002 * index, 20) for index in range(3)]
    found = label_positions(points, [0.88, 0.92], [0.86])
    assert len(set(found)) == 3


def test_a_label_keeps_off_a_point_that_comes_later() -> None:
    """The second lies where the first one's label would stand."""
    first, second = label_positions([(0.5, 0.80, 8), (0.5, 0.802, 8)], [0.4, 0.6], [0.9])
    assert first != "top center"
    assert second == "top center"


def test_where_there_is_no_room_labels_stand_above() -> None:
    assert label_positions([(0.5, 0.8, 8)] * 9, [], [])[-1] == "top center"
